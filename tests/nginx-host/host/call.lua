--- What the host knows about the call at hand.
--
-- nginx forgets ngx.ctx in an internal redirect (to a named location or to the
-- error handler), so it is kept under the request id from the first phase to the
-- last. Kong does the same with a reference of its own.
--
-- Fields of ngx.ctx.host: started_ms, route, service, prefix (the matched path,
-- when it is to be stripped), consumer, credential, tries, collected (phase →
-- plugins that run there), delayed (an answer that waits for the end of the
-- access phase), proxied / exited / unexpected (who answers), times in
-- milliseconds.

local call = {}

local kept = {}


--- Begins a call: the first phase of a request.
function call.begin()
  local self = {
    started_ms = math.floor(ngx.req.start_time() * 1000 + 0.5),
  }
  local ctx = ngx.ctx
  ctx.host = self
  kept[ngx.var.kong_request_id] = ctx
  return self
end


--- The call after an internal redirect; nil when none was begun.
function call.resume()
  local ctx = kept[ngx.var.kong_request_id]
  if ctx then
    ngx.ctx = ctx
    return ctx.host
  end
end


--- The call of this request; begun late when nginx refused the request before
--- its rewrite phase (a malformed request line, headers too large).
function call.current()
  return ngx.ctx.host or call.begin()
end


function call.finish()
  kept[ngx.var.kong_request_id] = nil
end


--- Milliseconds, as of the start of this event / as of now.
function call.now_ms()
  return math.floor(ngx.now() * 1000 + 0.5)
end

function call.updated_now_ms()
  ngx.update_time()
  return call.now_ms()
end


return call
