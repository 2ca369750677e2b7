-- nginx's light threads, as far as the plugin uses them: they run until they
-- wait, and waiting for several ends with the first timer.

local M = {}


function M.new()
  local threads = { sleeps = {}, killed = 0 }

  function threads.spawn(run, ...)
    -- nginx takes no other
    assert(debug.getinfo(run, "S").what == "Lua", "Lua function expected")
    local thread = { routine = coroutine.create(run) }
    local sleep = ngx.sleep
    ngx.sleep = function(seconds)
      threads.sleeps[#threads.sleeps + 1] = seconds
      thread.is_timer = true
      coroutine.yield("a moment")
    end
    local ok, what = coroutine.resume(thread.routine, ...)
    ngx.sleep = sleep
    if not ok then
      thread.err = what
    end

    return thread
  end

  function threads.wait(first, second)
    assert(not first.is_timer and second.is_timer)
    if first.err then
      return false, first.err
    end

    return true
  end

  function threads.kill()
    threads.killed = threads.killed + 1
  end

  return threads
end


return M
