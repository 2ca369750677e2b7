--- The environment in which pre-function code runs (`untrusted_lua = sandbox`,
--- Kong's default): plain Lua functions without side effects, `kong` and `ngx`.
--- No require, no io, no load, no metatables, no debug.

local sandbox = {}

local SAFE = {
  "_VERSION", "assert", "error", "ipairs", "next", "pairs", "pcall", "select", "tonumber",
  "tostring", "type", "unpack", "xpcall",
}

local SAFE_FIELDS = {
  coroutine = "create resume running status wrap yield",
  math = "abs acos asin atan atan2 ceil cos cosh deg exp floor fmod frexp huge ldexp log "
      .. "log10 max min modf pi pow rad random sin sinh sqrt tan tanh",
  os = "clock date difftime time",
  string = "byte char find format gmatch gsub len lower match rep reverse sub upper",
  table = "concat insert maxn remove sort",
}


local function read_only(fields, name)
  return setmetatable({}, {
    __index = fields,
    __newindex = function(_, key)
      error("Can not modify " .. name .. "." .. tostring(key) .. ". Protected by the sandbox.")
    end,
  })
end


local function base_environment()
  local env = {}
  for _, name in ipairs(SAFE) do
    env[name] = _G[name]
  end
  for module, names in pairs(SAFE_FIELDS) do
    local fields = {}
    for name in names:gmatch("%S+") do
      fields[name] = _G[module][name]
    end
    env[module] = read_only(fields, module)
  end
  env.require = function(name)
    error(("require '%s' not allowed within sandbox"):format(tostring(name)))
  end
  return env
end


--- Compiles text (never bytecode) to a function; nil, err.
function sandbox.compile(code)
  local env = setmetatable({ kong = kong, ngx = ngx }, { __index = base_environment() })
  return load(code, nil, "t", env)
end


return sandbox
