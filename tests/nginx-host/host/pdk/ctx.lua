--- kong.ctx.shared: one table a call, for all plugins.
--- kong.ctx.plugin: one table a call and plugin, so that two plugins may use the
--- same key. Outside a request both are nil.

-- Keys that no plugin can guess and overwrite in ngx.ctx.
local SHARED = {}
local PRIVATE = {}


local function sub_table(parent, key)
  local found = parent[key]
  if not found then
    found = {}
    parent[key] = found
  end
  return found
end


local has_request = require("resty.core.base").get_request


return setmetatable({}, {
  __index = function(_, name)
    if not has_request() then
      return nil
    end
    local ctx = ngx.ctx
    if name == "shared" then
      return sub_table(ctx, SHARED)
    end
    if name == "plugin" and ctx.host_plugin then
      return sub_table(sub_table(ctx, PRIVATE), ctx.host_plugin)
    end
  end,
})
