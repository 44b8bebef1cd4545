-- bpf.lua SEED: random classic BPF programs as socket filters, which the kernel compiles. A filter's result is how much of a
-- packet is let through, and must be what a model of BPF in Lua says.
local ffi = require("ffi")
local bit = require("bit")
ffi.cdef [[
struct instruction { uint16_t code; uint8_t jt, jf; uint32_t k; };
struct program { uint16_t length; struct instruction *instructions; };
int socketpair(int domain, int type, int protocol, int ends[2]);
int setsockopt(int socket, int level, int name, const void *value, unsigned length);
long send(int socket, const void *bytes, size_t count, int flags);
long recv(int socket, void *bytes, size_t count, int flags);
int close(int socket);
]]
local C = ffi.C
local AF_UNIX, SOCK_DGRAM, SOL_SOCKET, SO_ATTACH_FILTER, MSG_DONTWAIT = 1, 2, 1, 26, 0x40
local PROGRAMS, LENGTH, PACKET = 200, 24, 64

local jit = io.open("/proc/sys/net/core/bpf_jit_enable")
local enabled = jit:read("*n")
jit:close()
if enabled ~= 1 then
    print("not ok BPF: the kernel doesn't compile: bpf_jit_enable is " .. tostring(enabled))
    os.exit(1)
end
math.randomseed(tonumber(arg[1]))

local u32 = ffi.typeof("uint32_t")
local function unsigned(value) return tonumber(u32(value)) end
-- A product of two 32-bit numbers doesn't fit a double.
local function product(a, k) return tonumber(ffi.cast(u32, ffi.cast("uint64_t", a) * ffi.cast("uint64_t", k))) end

-- Opcodes of BPF_ALU with a constant, and what each does to A.
local operations = {
    { 0x04, function(a, k) return unsigned(bit.tobit(a + k)) end },
    { 0x14, function(a, k) return unsigned(bit.tobit(a - k)) end },
    { 0x24, product },
    { 0x34, function(a, k) return math.floor(a / k) end },
    { 0x44, function(a, k) return unsigned(bit.bor(a, k)) end },
    { 0x54, function(a, k) return unsigned(bit.band(a, k)) end },
    { 0x64, function(a, k) return unsigned(bit.lshift(a, k)) end, 31 },
    { 0x74, function(a, k) return unsigned(bit.rshift(a, k)) end, 31 },
    { 0x94, function(a, k) return a % k end },
    { 0xa4, function(a, k) return unsigned(bit.bxor(a, k)) end },
}
local LOAD_BYTE, JUMP_GREATER, AND, ADD, RETURN = 0x30, 0x25, 0x54, 0x04, 0x16

local packet, got = ffi.new("uint8_t[?]", PACKET), ffi.new("uint8_t[?]", PACKET)
for at = 0, PACKET - 1 do packet[at] = math.random(0, 255) end

local wrong = 0
local ends = ffi.new("int[2]")
for number = 1, PROGRAMS do
    local code = ffi.new("struct instruction[?]", LENGTH + 4)
    local from = math.random(0, PACKET - 1)
    code[0] = { LOAD_BYTE, 0, 0, from }
    local a, at = tonumber(packet[from]), 1
    while at < LENGTH do
        local k = math.random(1, 0x7fffffff) * math.random(1, 2)
        if math.random(4) == 1 then
            -- Jumps over the instruction behind it where A is greater, which then does nothing.
            code[at] = { JUMP_GREATER, 1, 0, k }
            code[at + 1] = { ADD, 0, 0, 77 }
            if a <= k then a = unsigned(bit.tobit(a + 77)) end
            at = at + 2
        else
            local operation = operations[math.random(#operations)]
            if operation[3] then k = k % operation[3] + 1 end
            code[at] = { operation[1], 0, 0, k }
            a = operation[2](a, k)
            at = at + 1
        end
    end
    code[at] = { AND, 0, 0, PACKET - 2 }
    code[at + 1] = { ADD, 0, 0, 1 }
    code[at + 2] = { RETURN, 0, 0, 0 }
    local wanted = bit.band(a, PACKET - 2) + 1
    assert(C.socketpair(AF_UNIX, SOCK_DGRAM, 0, ends) == 0)
    local program = ffi.new("struct program", at + 3, code)
    assert(C.setsockopt(ends[1], SOL_SOCKET, SO_ATTACH_FILTER, program, ffi.sizeof(program)) == 0)
    for _ = 1, 3 do
        C.send(ends[0], packet, PACKET, MSG_DONTWAIT)
        local count = tonumber(C.recv(ends[1], got, PACKET, MSG_DONTWAIT))
        if count ~= wanted or ffi.string(got, count) ~= ffi.string(packet, count) then
            wrong = wrong + 1
            print("not ok BPF: program " .. number .. " lets " .. count .. " bytes through, not " .. wanted)
        end
    end
    C.close(ends[0])
    C.close(ends[1])
end
if wrong == 0 then print("ok BPF programs filter as their model does") end
