--- Which PDK functions may be called when.
--
-- Kong notes the phase of each call and raises when a function is called in one
-- where it has no meaning, for instance set_header for the upstream in
-- header_filter. Plugins must not rely on nginx being more lenient, so the host
-- raises too, with the same words.
-- Phases per function: the "phases" line of each function in Kong's PDK
-- reference (docs.konghq.com, "Plugin Development Kit").

local phase = {}


-- In the order in which a call passes them, for readable messages.
local ORDER = { "init_worker", "rewrite", "access", "balancer", "response",
                "header_filter", "body_filter", "log", "error", "admin_api" }


function phase.set(...)
  local allowed = {}
  for _, name in ipairs({ ... }) do
    allowed[name] = true
  end
  local names = {}
  for _, name in ipairs(ORDER) do
    if allowed[name] then
      names[#names + 1] = name
    end
  end
  return { allowed = allowed, names = table.concat(names, ", ") }
end


--- Everything that belongs to a request.
phase.request = phase.set("rewrite", "access", "balancer", "response", "header_filter",
                          "body_filter", "log", "error", "admin_api")


--- Raises at the caller of the PDK function unless the phase is in `set`.
function phase.check(set)
  local current = ngx.ctx.host_phase
  if set.allowed[current] then
    return
  end
  if not current then
    error(("no phase in ngx.ctx.KONG_PHASE, (need one of %s)"):format(set.names), 3)
  end
  error(("function cannot be called in %s phase (only in: %s)")
        :format(current, set.names), 3)
end


return phase
