--- Test equipment: stands in for Kong's request-transformer plugin, headers only.
-- Order: remove, rename, replace (only what is there), add (only what is not
-- there), append. Values are not rendered as templates.

local meta = require "kong.meta"


local request_transformer = {
  PRIORITY = 801,
  VERSION = meta.version,
}


local function each_pair(list)
  local i = 0
  return function()
    i = i + 1
    if list[i] then
      return list[i]:match("^([^:]+):*(.-)$")
    end
  end
end


function request_transformer:access(config)
  local request = kong.service.request
  local headers = kong.request.get_headers()
  for _, name in ipairs(config.remove.headers) do
    headers[name:lower()] = nil
    request.clear_header(name)
  end
  for old, new in each_pair(config.rename.headers) do
    local value = headers[old:lower()]
    if value then
      headers[old:lower()] = nil
      headers[new:lower()] = value
      request.clear_header(old)
      request.set_header(new, value)
    end
  end
  for name, value in each_pair(config.replace.headers) do
    if headers[name:lower()] then
      headers[name:lower()] = value
      request.set_header(name, value)
    end
  end
  for name, value in each_pair(config.add.headers) do
    if not headers[name:lower()] and name:lower() ~= "host" then
      headers[name:lower()] = value
      request.set_header(name, value)
    end
  end
  for name, value in each_pair(config.append.headers) do
    request.add_header(name, value)
  end
end


return request_transformer
