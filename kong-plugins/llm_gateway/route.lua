-- Leads a call to the model server that was chosen for it, and says afterwards
-- which one answered.
--
-- Kong picks a server of the upstream, and another one when that does not
-- answer. For POST nginx does the latter only with `non_idempotent` in
-- proxy_next_upstream, see docs/models.md.

local response_servers = require "llm_gateway.response_servers"

local find = string.find
local kong = kong
local match = string.match
local ngx = ngx
local tonumber = tonumber

-- Servers that are asked after the first one failed. A request that kills
-- whoever reads it must not go through all of them; one more only would fail
-- while two of three are restarted.
local RETRIES = 2

local M = {}


local function authorize(asked)
  if asked.server_key then
    kong.service.request.set_header("Authorization",
                                    "Bearer " .. asked.server_key)
  end
end


local function note(asked, model)
  local key = model.settings.key
  asked.routed_to = model
  asked.server_key = key and key ~= "" and key or nil
  authorize(asked)
end


-- To one of the upstream's servers.
-- @return true, or nil and why not
function M.to_upstream(asked, model)
  local ok, err = kong.service.set_upstream(model.upstream)
  if not ok then
    return nil, err
  end

  -- Kong takes the upstream's name for an address where the service has one,
  -- and has no function for the number of tries.
  local balancer_data = ngx.ctx.balancer_data
  balancer_data.type = "name"
  balancer_data.retries = RETRIES
  note(asked, model)

  return true
end


-- To the very server that has something.
-- @param address host:port as M.backend gave it
function M.to_server(asked, model, address)
  local host, port = match(address, "^(.+):(%d+)$")
  kong.service.set_target(host, tonumber(port))
  note(asked, model)
end


-- For the last plugin of the access phase: what sets the same header for all
-- calls (Kong's request-transformer) runs between it and llm-router.
function M.confirm(asked)
  authorize(asked)
end


-- @return host:port of the server that had the call last; nil for calls that
-- went the way of the service
function M.backend(asked)
  if not asked.routed_to then
    return nil
  end

  -- 10.0.0.1:8000, 10.0.0.2:8000: the tries in their order
  local address = match(ngx.var.upstream_addr or "", "([^%s,]+)%s*$")

  return address and find(address, ":%d+$") and address or nil
end


-- Remembers who made a response that may be asked for later.
function M.note_response(asked, id)
  local address = M.backend(asked)
  if address then
    response_servers.note(id, address, asked.routed_to.name)
  end
end


return M
