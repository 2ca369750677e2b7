-- The path that goes to the model server. What a call is, is decided by it and
-- not by how the client spelled it.

local find = string.find
local kong = kong
local ngx = ngx
local sub = string.sub

local M = {}


-- @return the path without its query; where nothing is forwarded, the one that
-- the router looked at
function M.path()
  local upstream_uri = ngx.var.upstream_uri
  if upstream_uri and upstream_uri ~= "" then
    local query = find(upstream_uri, "?", 1, true)
    return query and sub(upstream_uri, 1, query - 1) or upstream_uri
  end

  return kong.request.get_path()
end


return M
