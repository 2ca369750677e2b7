-- Lets an error of the plugin end in the log and not in the call.
--
-- Invariant: the function that guard() returns never raises. Errors are
-- written seldom, see llm_gateway.seldom.

local seldom = require "llm_gateway.seldom"

local pcall = pcall
local tostring = tostring

local M = {}


-- @param write called with a line for the error log
-- @param now returns seconds
-- @return guard(name, run, recover): a function that calls run(...) and gives
-- its first result; when that fails, it calls recover() if there is one
function M.new(write, now)
  local say = seldom.new(write, now)

  local function report(name, err)
    say(name .. " failed, the call goes on: " .. tostring(err))
  end

  return function(name, run, recover)
    return function(...)
      local ok, result = pcall(run, ...)
      if ok then
        return result
      end

      -- Even the log may fail; there is nobody left to tell.
      pcall(report, name, result)
      if recover then
        pcall(recover)
      end
    end
  end
end


return M
