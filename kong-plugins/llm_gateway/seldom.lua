-- Writes a line at most once a minute and worker, with the number of those that
-- were not written since: a fault that hits every call must not fill a disk.

-- Shorter floods the log, longer hides from an operator who watches it
-- whether the fault is still there.
local INTERVAL_SECONDS = 60

local M = {}


-- @param write called with a line for the error log
-- @param now returns seconds
-- @return a function that is called with a line
function M.new(write, now)
  local written_at
  local suppressed = 0

  return function(line)
    local time = now()
    if written_at and time - written_at < INTERVAL_SECONDS
      and time >= written_at
    then
      suppressed = suppressed + 1
      return
    end

    if suppressed > 0 then
      line = line .. " (" .. suppressed .. " more errors not logged)"
    end

    written_at = time
    suppressed = 0
    write(line)
  end
end


return M
