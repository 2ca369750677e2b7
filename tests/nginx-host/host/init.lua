--- Test equipment, not Kong: the entry points that nginx.conf.in calls.
--
-- Order of start-up, as in Kong: the master loads every plugin before it forks
-- (module-level code runs once, so an identity made there is shared by all
-- workers), then each worker runs the plugins' init_worker.

local lifecycle = require "host.lifecycle"


local host = {}

local BANNER = "nginx test host for the gateway's plugins: test equipment, "
            .. "not Kong, not for users"


function host.init()
  local settings = require "host.settings"
  ngx.log(ngx.NOTICE, BANNER)

  -- The global must exist before any plugin file is loaded: they say
  -- `local kong = kong` on top.
  _G.kong = require("host.pdk").new(settings)

  local store = require "host.store"
  store.restore(settings.state_file)

  local plugins = require "host.plugins"
  plugins.load(settings.plugins)

  local phases = require "host.phases"
  host.rewrite = phases.rewrite
  host.access = phases.access
  host.balancer = phases.balancer
  host.header_filter = phases.header_filter
  host.body_filter = phases.body_filter
  host.log = phases.log
  host.handle_error = phases.handle_error
  host.admin = require("host.admin").serve
  host.status = require("host.status").serve
end


function host.init_worker()
  local settings = require "host.settings"
  lifecycle.watch(settings)
  local snapshot = require "host.snapshot"
  snapshot.start(settings.update_frequency)
  require("host.balancer").start(snapshot.get)
  require("host.plugins").init_worker()
  if ngx.worker.id() == 0 then
    ngx.log(ngx.NOTICE, BANNER, ", claims to be Kong ", settings.version)
  end
end


return host
