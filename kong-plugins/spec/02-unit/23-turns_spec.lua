-- Long work of several calls in one worker, over an event loop as nginx has it:
-- events of sockets first, then all timers that have expired, one after the
-- other; the time is what it was when the events came, unless somebody asks
-- for it anew.
describe("long work on large bodies", function()
  local ngx_before = _G.ngx
  local reading, real, cached, timers, round

  before_each(function()
    real, cached, timers, round = 1700000000, 1700000000, {}, 0
    _G.ngx = {
      now = function()
        return cached
      end,
      update_time = function()
        cached = real
      end,
      sleep = function(seconds)
        timers[#timers + 1] = { at = cached + seconds,
                                thread = coroutine.running() }
        coroutine.yield()
      end,
    }
    package.loaded["llm_gateway.reading"] = nil
    reading = require "llm_gateway.reading"
  end)

  teardown(function()
    _G.ngx = ngx_before
    package.loaded["llm_gateway.reading"] = nil
  end)

  local function resume(thread)
    assert(coroutine.resume(thread))
  end

  -- @param stop tells whether to end although there are timers
  local function run(stop)
    while #timers > 0 and not stop() do
      table.sort(timers, function(one, other)
        return one.at < other.at
      end)
      real = math.max(real, timers[1].at)
      cached = real
      round = round + 1

      while timers[1] and timers[1].at <= cached do
        resume(table.remove(timers, 1).thread)
      end
      real = real + 0.0001
    end
  end

  -- Starts calls that do so many pieces of work each.
  -- @param seconds that a piece takes
  -- @return done: how many pieces each has done, in which round each piece was
  local function start(calls, pieces, seconds)
    local done, rounds = {}, {}
    for call = 1, calls do
      done[call] = 0
      resume(coroutine.create(function()
        for _ = 1, pieces do
          reading.await_turn()
          real = real + seconds
          done[call] = done[call] + 1
          rounds[#rounds + 1] = round
        end
        reading.end_turn()
        -- What Kong does when a call goes on.
        ngx.update_time()
      end))
    end

    return done, rounds
  end

  local function never()
    return false
  end

  it("is one piece at most between two looks at other calls' events", function()
    for _, seconds in ipairs({ 0, 0.0005, 0.004, 0.011, 0.09 }) do
      local done, rounds = start(8, 30, seconds)
      run(never)
      assert.same({ 30, 30, 30, 30, 30, 30, 30, 30 }, done)
      for i = 2, #rounds do
        assert.is_true(rounds[i] > rounds[i - 1])
      end
    end
  end)

  it("ends for every call, also when the clock is set back", function()
    local done = start(3, 4, 0.002)
    run(function()
      return done[1] > 0
    end)
    local back = 86400
    real, cached = real - back, cached - back
    for _, timer in ipairs(timers) do
      timer.at = timer.at - back
    end

    local from = real
    run(never)
    assert.same({ 4, 4, 4 }, done)
    assert.is_true(real - from < 1)
  end)
end)
