-- Lets an error of the plugin end in the log and not in the call.
--
-- Invariant: the function that guard() returns never raises. Errors are
-- written at most once a minute and worker, with the number of those that
-- were not written since: a fault that hits every call must not fill a disk.

-- Shorter floods the log, longer hides from an operator who watches it
-- whether the fault is still there.
local INTERVAL_SECONDS = 60

local pcall = pcall
local tostring = tostring

local M = {}


-- @param write called with a line for the error log
-- @param now returns seconds
-- @return guard(name, run, recover): a function that calls run(...) and gives
-- its first result; when that fails, it calls recover() if there is one
function M.new(write, now)
  local written_at
  local suppressed = 0

  local function report(name, err)
    local time = now()
    if written_at and time - written_at < INTERVAL_SECONDS
      and time >= written_at
    then
      suppressed = suppressed + 1
      return
    end

    local line = name .. " failed, the call goes on: " .. tostring(err)
    if suppressed > 0 then
      line = line .. " (" .. suppressed .. " more errors not logged)"
    end

    written_at = time
    suppressed = 0
    write(line)
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
