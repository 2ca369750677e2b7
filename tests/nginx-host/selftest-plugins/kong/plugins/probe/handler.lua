--- A plugin that reports what the host lets it see and do.
-- Response header X-Probe: whether access ran, the route, the source of the answer.
-- Log entry `probe`: the phases that ran, whether the end of the body was seen, what
-- get_raw_body said, which calls did not raise although Kong forbids them there.
-- A call with ?mark=… leaves a line in nginx's log, too.
-- Request headers ask it to misbehave: X-Replace, X-Replace-Response, X-Exit, X-Raise.
-- X-Upstream, X-Target: where the call is to go; X-Named: as a plugin does that knows
-- what Kong makes of an upstream's name where the service has an address.

local kong = kong

local probe = { PRIORITY = 20, VERSION = "1.0.0" }


-- Calls that must raise; the name of each that did not goes into the report.
local FORBIDDEN = {
  header_filter = {
    ["kong.service.request.set_header"] = function()
      kong.service.request.set_header("X-A", "b")
    end,
    ["kong.service.request.set_raw_body"] = function()
      kong.service.request.set_raw_body("x")
    end,
    ["kong.request.get_raw_body"] = function()
      kong.request.get_raw_body()
    end,
    ["kong.response.get_raw_body"] = function()
      kong.response.get_raw_body()
    end,
    ["kong.log.serialize"] = function()
      kong.log.serialize()
    end,
  },
  body_filter = {
    ["kong.response.set_header"] = function()
      kong.response.set_header("X-A", "b")
    end,
    ["kong.response.clear_header"] = function()
      kong.response.clear_header("X-A")
    end,
    ["kong.response.exit"] = function()
      kong.response.exit(500)
    end,
    ["kong.client.authenticate"] = function()
      kong.client.authenticate({}, {})
    end,
  },
  log = {
    ["kong.request.get_raw_body"] = function()
      kong.request.get_raw_body()
    end,
    ["kong.response.set_header"] = function()
      kong.response.set_header("X-A", "b")
    end,
    ["kong.service.request.clear_header"] = function()
      kong.service.request.clear_header("X-A")
    end,
  },
  access = {
    ["kong.response.get_status"] = function()
      kong.response.get_status()
    end,
    ["kong.response.get_source"] = function()
      kong.response.get_source()
    end,
    ["kong.log.serialize"] = function()
      kong.log.serialize()
    end,
  },
}


local function report()
  local ctx = kong.ctx.plugin
  ctx.report = ctx.report or { phases = {}, forbidden = {}, eof = false }
  return ctx.report
end


local function enter(phase)
  local mine = report()
  if mine.phases[#mine.phases] ~= phase then
    mine.phases[#mine.phases + 1] = phase
    for name, call in pairs(FORBIDDEN[phase] or {}) do
      local ok, err = pcall(call)
      if ok or not tostring(err):find("function cannot be called in " .. phase, 1, true) then
        mine.forbidden[phase .. " " .. name] = tostring(err or "did not raise")
      end
    end
  end
  return mine
end


local function lead(upstream, target)
  if upstream then
    local ok, err = kong.service.set_upstream(upstream)
    if not ok then
      return kong.response.exit(404, { message = err })
    end
    if kong.request.get_header("X-Named") then
      ngx.ctx.balancer_data.type = "name"
    end
  elseif target then
    local host, port = target:match("^(.+):(%d+)$")
    kong.service.set_target(host, tonumber(port))
  end
end


function probe:access()
  local mine = enter("access")
  mine.access = true
  kong.ctx.plugin.value = "mine"
  kong.ctx.shared.value = "ours"

  local body, err = kong.request.get_raw_body()
  mine.raw_body = body and #body or err
  body = kong.request.get_raw_body(0)
  mine.raw_body_with_max = #body
  local _, too_big = kong.request.get_raw_body(10)
  mine.raw_body_too_big = too_big

  local replacement = kong.request.get_header("X-Replace")
  if replacement then
    kong.service.request.set_raw_body(replacement)
  end
  if kong.request.get_header("X-Exit") then
    pcall(function()
      kong.response.exit(tonumber(kong.request.get_header("X-Exit")), { message = "exited" })
    end)
    kong.service.request.set_header("X-Went-On", "after exit")
  end
  if kong.request.get_header("X-Raise") == "access" then
    error("raised as asked")
  end
  lead(kong.request.get_header("X-Upstream"), kong.request.get_header("X-Target"))
end


function probe:header_filter()
  local mine = enter("header_filter")
  local route = kong.router.get_route()
  kong.response.set_header("X-Probe", ("access=%s route=%s source=%s"):format(
    mine.access and "yes" or "nil", route and route.name or "nil", kong.response.get_source()))
  if kong.request.get_header("X-Replace-Response") then
    kong.response.clear_header("Content-Length")
  end
end


function probe:body_filter()
  local mine = enter("body_filter")
  if ngx.arg[2] then
    mine.eof = true
  end
  if kong.request.get_header("X-Replace-Response") then
    ngx.arg[1] = ngx.arg[2] and "replaced" or nil
  end
end


function probe:log()
  local mine = enter("log")
  if ngx.var.arg_mark then
    kong.log.notice("probe logged the call with mark=", ngx.var.arg_mark)
  end
  kong.log.set_serialize_value("probe", {
    phases = table.concat(mine.phases, ","),
    forbidden = mine.forbidden,
    eof = mine.eof,
    raw_body = mine.raw_body,
    raw_body_with_max = mine.raw_body_with_max,
    raw_body_too_big = mine.raw_body_too_big,
    ctx_plugin = kong.ctx.plugin.value,
    ctx_shared = kong.ctx.shared.value,
  })
end


return probe
