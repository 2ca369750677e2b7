--- Test equipment: stands in for Kong's pre-function plugin.
-- Each phase has a list of Lua texts, compiled once in the sandbox. A text that
-- returns a function is run once to get it; that function runs from then on.

local meta = require "kong.meta"
local sandbox = require "host.sandbox"

local PHASES = { "rewrite", "access", "header_filter", "body_filter", "log" }


local pre_function = {
  PRIORITY = 1000000,
  VERSION = meta.version,
}


local function compile(text)
  local run = assert(sandbox.compile(text))
  return function()
    local result = run()
    if type(result) == "function" then
      run = result
      run()
    end
  end
end


-- Settings tables live as long as the settings do not change.
local compiled = setmetatable({}, { __mode = "k" })

local function functions_of(config)
  local found = compiled[config]
  if not found then
    found = {}
    for _, phase in ipairs(PHASES) do
      found[phase] = {}
      for i, text in ipairs(config[phase] or {}) do
        found[phase][i] = compile(text)
      end
    end
    compiled[config] = found
  end
  return found
end


for _, phase in ipairs(PHASES) do
  pre_function[phase] = function(_, config)
    for _, run in ipairs(functions_of(config)[phase]) do
      run()
    end
  end
end


return pre_function
