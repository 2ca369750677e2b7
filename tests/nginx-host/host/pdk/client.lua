--- kong.client and kong.router: who calls, and what was matched.

local phase = require "host.phase"

local check = phase.check
local AUTH_AND_LATER = phase.set("access", "response", "header_filter", "body_filter", "log")


local client = {}

function client.get_ip()
  return ngx.var.realip_remote_addr or ngx.var.remote_addr
end


function client.get_forwarded_ip()
  return ngx.var.remote_addr
end


function client.get_port()
  return tonumber(ngx.var.remote_port)
end


function client.get_consumer()
  check(AUTH_AND_LATER)
  return ngx.ctx.host.consumer
end


function client.get_credential()
  check(AUTH_AND_LATER)
  return ngx.ctx.host.credential
end


local AUTHENTICATE = phase.set("access")

function client.authenticate(consumer, credential)
  check(AUTHENTICATE)
  if consumer == nil and credential == nil then
    error("either credential or consumer must be provided", 2)
  end
  local call = ngx.ctx.host
  call.consumer = consumer
  call.credential = credential
end


local router = {}

function router.get_route()
  check(AUTH_AND_LATER)
  return ngx.ctx.host.route
end


function router.get_service()
  check(AUTH_AND_LATER)
  return ngx.ctx.host.service
end


return { client = client, router = router }
