-- numbers.lua SEED: floating point, strings and tables; the same in Lua and LuaJIT.
local state = tonumber(arg[1])
local function random(limit)
    state = (state * 16807) % 2147483647
    return state % limit
end

local size = 24
local function matrix()
    local rows = {}
    for i = 1, size do
        rows[i] = {}
        for j = 1, size do rows[i][j] = random(1000) / 1000 end
    end
    return rows
end
local function product(a, b)
    local rows = {}
    for i = 1, size do
        local row = {}
        for j = 1, size do
            local sum = 0
            for k = 1, size do sum = sum + a[i][k] * b[k][j] end
            row[j] = sum
        end
        rows[i] = row
    end
    return rows
end

local m = matrix()
for _ = 1, 10 do
    m = product(m, matrix())
    local largest = 0
    for i = 1, size do for j = 1, size do largest = math.max(largest, m[i][j]) end end
    for i = 1, size do for j = 1, size do m[i][j] = m[i][j] / largest end end
    print(string.format("%.10f %.10f", m[1][1], m[size][size]))
end

local words = {}
for k = 1, 3000 do words[k] = string.format("%05d-%s", random(100000), ("x"):rep(random(20))) end
table.sort(words)
print(table.concat(words, " "))
local seen = {}
for _, word in ipairs(words) do
    local key = word:gsub("%d", function(digit) return 9 - tonumber(digit) end):upper()
    seen[key] = (seen[key] or 0) + #word
end
local keys = {}
for key in pairs(seen) do keys[#keys + 1] = key end
table.sort(keys)
for _, key in ipairs(keys) do print(key, seen[key]) end
