-- A load for LuaJIT: loops hot enough to be compiled, side exits, calls through tables, garbage, and code that is thrown away
-- and compiled anew. Prints `NAME RESULT` for each part; the results are known from elsewhere. tests/tests/guests/jits.rs
-- has them.
local bit = require("bit")
local util = require("jit.util")
local scale = tonumber(arg[1] or 1)

local function primes(limit)
    local composite, count = {}, 0
    for number = 2, limit do
        if not composite[number] then
            count = count + 1
            for multiple = number * number, limit, number do composite[multiple] = true end
        end
    end
    return count
end

local function queens(size)
    local full = bit.lshift(1, size) - 1
    local function place(columns, left, right)
        if columns == full then return 1 end
        local count, free = 0, bit.band(bit.bnot(bit.bor(columns, left, right)), full)
        while free ~= 0 do
            local spot = bit.band(free, -free)
            free = bit.bxor(free, spot)
            count = count + place(bit.bor(columns, spot), bit.lshift(bit.bor(left, spot), 1),
                bit.rshift(bit.bor(right, spot), 1))
        end
        return count
    end
    return place(0, 0, 0)
end

local function fibonacci(number)
    if number < 2 then return number end
    return fibonacci(number - 1) + fibonacci(number - 2)
end

local function crc32(text)
    local crc = -1
    for at = 1, #text do
        crc = bit.bxor(crc, text:byte(at))
        for _ = 1, 8 do
            crc = bit.bxor(bit.rshift(crc, 1), bit.band(0xedb88320, -bit.band(crc, 1)))
        end
    end
    return bit.tohex(bit.bnot(crc))
end

local function collatz(limit)
    local best, start = 0, 0
    for first = 1, limit do
        local number, steps = first, 0
        while number ~= 1 do
            if number % 2 == 0 then number = number / 2 else number = 3 * number + 1 end
            steps = steps + 1
        end
        if steps > best then best, start = steps, first end
    end
    return start
end

local function basel(terms)
    local sum = 0
    for k = terms, 1, -1 do sum = sum + 1 / (k * k) end
    return string.format("%.6f", math.sqrt(sum * 6) + 6 / (2 * math.pi * terms))
end

-- A generator whose whole period is walked: what is sorted is a permutation.
local function sorted(size)
    local list, number = {}, 1
    for at = 1, size do
        list[at] = tostring(number)
        number = (number * 5 + 3) % size
    end
    table.sort(list, function(a, b) return tonumber(a) < tonumber(b) end)
    for at = 1, size do
        if list[at] ~= tostring(at - 1) then return "no" end
    end
    return "yes"
end

local function square(x) return { area = function() return x * x end } end
local function circle(x) return { area = function() return 3 * x * x end } end
local function shapes(count)
    local sum = 0
    for k = 1, count do
        local shape = k % 2 == 0 and square(k % 7) or circle(k % 5)
        sum = sum + shape.area()
    end
    return sum
end

-- Compiled code is dropped and its memory used again, each time with another constant in it.
local function regenerated(rounds)
    local sum = 0
    for round = 1, rounds do
        local code = assert(loadstring("local s = 0 for k = 1, 200 do s = s + " .. round .. " end return s"))
        sum = sum + code()
        if round % 50 == 0 then jit.flush() end
    end
    return sum
end

print("primes " .. primes(100000 * scale))
print("queens " .. queens(8))
print("fibonacci " .. fibonacci(22))
print("crc32 " .. crc32("123456789"))
print("collatz " .. collatz(10000))
print("basel " .. basel(100000))
print("sorted " .. sorted(8192))
print("shapes " .. shapes(70000))
print("regenerated " .. regenerated(500))
shapes(1000)
print("compiled " .. tostring(jit.status() and util.traceinfo(1) ~= nil))
