--- Router, plugin settings and upstreams of a worker, built from one state of the
--- store.
--
-- Kong rebuilds them at most every worker_state_update_frequency seconds; calls
-- that began before keep the ones they began with. Consumers and keys are not
-- part of it: they take effect at once, as from Kong's cache.

local balancer = require "host.balancer"
local router = require "host.router"
local store = require "host.store"


local snapshot = {}

local current, current_version
local every_call = true

-- Kong tells its workers of a change, those without calls among them.
local LOOK_SECONDS = 0.2


local function rebuild()
  local version = store.version()
  if version == current_version then
    return
  end
  local plugins = require "host.plugins"
  local document = store.read()
  current = {
    router = router.build(document),
    plugins = plugins.build(document),
    upstreams = balancer.build(document),
  }
  current_version = version
  plugins.configure(current.plugins)
end


function snapshot.start(update_frequency)
  rebuild()
  every_call = update_frequency == 0
  local seconds = every_call and LOOK_SECONDS or update_frequency
  assert(ngx.timer.every(seconds, function(premature)
    if not premature then
      rebuild()
    end
  end))
end


--- What is valid now: { router, plugins, upstreams }.
function snapshot.get()
  if every_call or not current then
    rebuild()
  end
  return current
end


return snapshot
