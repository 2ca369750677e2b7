-- An ngx.shared dict in memory, as far as plugins use one: several workers may
-- hold the same. `room` bounds how many keys there are, `now` tells the time.

local M = {}

local Dict = {}
Dict.__index = Dict


-- @param options { room: the most keys, nil for any number, now: returns
-- seconds, nil where nothing expires }
function M.new(options)
  options = options or {}

  return setmetatable({
    values = {},
    expires = {},
    count = 0,
    room = options.room,
    now = options.now or function()
      return 0
    end,
  }, Dict)
end


function Dict:get(key)
  local expires = self.expires[key]
  if expires and expires <= self.now() then
    self:delete(key)
  end

  return self.values[key]
end


function Dict:delete(key)
  if self.values[key] ~= nil then
    self.count = self.count - 1
  end
  self.values[key] = nil
  self.expires[key] = nil
end


local function put(self, key, value, ttl)
  if self.values[key] == nil then
    if self.room and self.count >= self.room then
      return nil, "no memory"
    end
    self.count = self.count + 1
  end
  self.values[key] = value
  self.expires[key] = ttl and ttl > 0 and self.now() + ttl or nil

  return true
end


function Dict:safe_set(key, value, ttl)
  if value == nil then
    self:delete(key)
    return true
  end

  return put(self, key, value, ttl)
end


function Dict:safe_add(key, value, ttl)
  if self:get(key) ~= nil then
    return false, "exists"
  end

  return put(self, key, value, ttl)
end


function Dict:incr(key, by)
  local value = self:get(key)
  if value == nil then
    return nil, "not found"
  end
  self.values[key] = value + by

  return self.values[key]
end


function Dict:get_keys(most)
  assert(most == 0)
  local keys = {}
  for key in pairs(self.values) do
    keys[#keys + 1] = key
  end

  return keys
end


return M
