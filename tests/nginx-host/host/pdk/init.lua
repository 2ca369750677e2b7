--- The part of Kong's PDK that gateway plugins use, as the global `kong`.
--
-- Functions are grouped as in Kong, one file a group. What is not here does not
-- exist in the host: a plugin that needs it fails loudly.

local pdk = {}


local function node()
  return {
    get_id = function()
      return ngx.shared.kong:get("kong:node_id")
    end,
    get_hostname = function()
      local file = io.open("/proc/sys/kernel/hostname")
      local name = file and file:read("*l") or "localhost"
      if file then
        file:close()
      end
      return name
    end,
  }
end


local function tables()
  return {
    new = require "table.new",
    clear = require "table.clear",
  }
end


--- Kong's timer library, as far as ngx.timer goes.
local function timer()
  return {
    at = function(_, delay, callback, ...)
      return ngx.timer.at(delay, callback, ...)
    end,
    every = function(_, delay, callback, ...)
      return ngx.timer.every(delay, callback, ...)
    end,
    named_at = function(_, _, delay, callback, ...)
      return ngx.timer.at(delay, callback, ...)
    end,
    named_every = function(_, _, delay, callback, ...)
      return ngx.timer.every(delay, callback, ...)
    end,
  }
end


function pdk.new(settings)
  local uuid = require "host.uuid"
  ngx.shared.kong:safe_add("kong:node_id", uuid.generate())

  local major, minor, patch = settings.version:match("^(%d+)%.(%d+)%.(%d+)")
  local kong = {
    version = settings.version,
    version_num = tonumber(major) * 1000000 + tonumber(minor) * 10000
                  + tonumber(patch) * 100,
    pdk_major_version = 2,
    configuration = {
      prefix = settings.prefix,
      untrusted_lua = "sandbox",
      database = "postgres",
      role = "traditional",
      router_flavor = "traditional_compatible",
      log_level = "notice",
      loaded_plugins = {},
      proxy_listeners = { { port = settings.proxy_port } },
      remove_sensitive = function()
        return {}
      end,
    },
    ctx = require("host.pdk.ctx"),
    log = require("host.pdk.log"),
    request = require("host.pdk.request"),
    response = require("host.pdk.response"),
    service = require("host.pdk.service"),
    node = node(),
    table = tables(),
    timer = timer(),
    ip = {
      is_trusted = function()
        return false
      end,
    },
    nginx = {
      get_subsystem = function()
        return "http"
      end,
    },
    plugin = {
      get_id = function()
        return ngx.ctx.host_plugin_id
      end,
    },
  }
  local client = require "host.pdk.client"
  kong.client = client.client
  kong.router = client.router
  return kong
end


return pdk
