--- Random identifiers for what the Admin API creates.

local uuid = {}

-- Not a seed of our own: set in the master, it would give every worker the same
-- sequence. Unbuffered for the same reason: what the master has read ahead, the
-- workers would share.
local random = assert(io.open("/dev/urandom", "rb"))
random:setvbuf("no")


--- `count` random bytes as lower-case hexadecimal digits.
function uuid.random_hex(count)
  return (random:read(count):gsub(".", function(byte)
    return ("%02x"):format(byte:byte())
  end))
end


function uuid.generate()
  local hex = uuid.random_hex(16)
  return ("%s-%s-4%s-%s%s-%s"):format(hex:sub(1, 8), hex:sub(9, 12), hex:sub(14, 16),
    ("89ab"):sub(tonumber(hex:sub(17, 17), 16) % 4 + 1, tonumber(hex:sub(17, 17), 16) % 4 + 1),
    hex:sub(18, 20), hex:sub(21, 32))
end


function uuid.is_valid(text)
  return type(text) == "string"
     and text:match("^%x%x%x%x%x%x%x%x%-%x%x%x%x%-%x%x%x%x%-%x%x%x%x%-"
                    .. "%x%x%x%x%x%x%x%x%x%x%x%x$") ~= nil
end


return uuid
