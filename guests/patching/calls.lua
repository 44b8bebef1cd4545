-- calls.lua umask COUNT: calls umask(2) so often. calls.lua send ADDRESS COUNT: sends so many UDP packets there.
local ffi = require("ffi")
ffi.cdef [[
unsigned umask(unsigned mask);
int socket(int domain, int type, int protocol);
int inet_pton(int family, const char *text, void *address);
long sendto(int socket, const void *bytes, size_t count, int flags, const void *address, unsigned length);
]]

local what = arg[1]
if what == "umask" then
    local mask = tonumber("077", 8)
    ffi.C.umask(mask)
    for _ = 2, tonumber(arg[2]) do
        if ffi.C.umask(mask) ~= mask then print("not ok umask: another mask") end
    end
elseif what == "send" then
    local AF_INET, SOCK_DGRAM = 2, 2
    local address = ffi.new("struct { uint16_t family; uint8_t port[2]; uint8_t ip[4]; uint8_t zero[8]; }")
    address.family, address.port[1] = AF_INET, 9
    assert(ffi.C.inet_pton(AF_INET, arg[2], address.ip) == 1)
    local socket = ffi.C.socket(AF_INET, SOCK_DGRAM, 0)
    for _ = 1, tonumber(arg[3]) do
        if ffi.C.sendto(socket, "packet", 6, 0, address, 16) ~= 6 then print("not ok send: refused") end
    end
end
