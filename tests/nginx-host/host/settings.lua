--- What run.sh hands over in the environment, read once in the master.

local function list(text)
  local names = {}
  for name in text:gmatch("[^,%s]+") do
    names[#names + 1] = name
  end
  return names
end


local function value(name, default)
  local text = os.getenv(name)
  if text == nil or text == "" then
    return default
  end
  return text
end


local version = value("NGINX_HOST_VERSION", "3.9.5")

return {
  prefix = value("NGINX_HOST_PREFIX", "."),
  -- Kong's `plugins` property: names, `bundled` for those Kong brings.
  plugins = list(value("NGINX_HOST_PLUGINS", "bundled,llm-audit,llm-router,llm-quota,llm-queue")),
  version = version,
  server_token = "kong/" .. version,
  state_file = value("NGINX_HOST_STATE"),
  -- Kong's worker_state_update_frequency: seconds between two looks for a new
  -- router and new plugin settings. 0 looks at every request.
  update_frequency = tonumber(value("NGINX_HOST_UPDATE_FREQUENCY", "0")) or 0,
  proxy_port = tonumber(value("NGINX_HOST_PROXY_PORT")),
  watch_pid = tonumber(value("NGINX_HOST_WATCH_PID")),
  workspace = "0c9d3a77-e8a6-4187-9315-b899d7150be9",
  workspace_name = "default",
}
