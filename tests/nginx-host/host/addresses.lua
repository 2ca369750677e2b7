--- Turns a service's host into an address. Kong asks DNS; the host knows
--- addresses and what /etc/hosts says, which is enough for tests on one machine.

local addresses = {}

local cache


local function read_hosts()
  local known = { localhost = "127.0.0.1" }
  local file = io.open("/etc/hosts")
  for line in file and file:lines() or function() end do
    local address, names = line:match("^%s*(%d+%.%d+%.%d+%.%d+)%s+([^#]+)")
    for name in (names or ""):gmatch("%S+") do
      known[name:lower()] = known[name:lower()] or address
    end
  end
  if file then
    file:close()
  end
  return known
end


--- An IP address; nil when the name is not known.
function addresses.resolve(name)
  if name:match("^%d+%.%d+%.%d+%.%d+$") or name:match("^%[.*%]$") then
    return name
  end
  cache = cache or read_hosts()
  return cache[name:lower()]
end


return addresses
