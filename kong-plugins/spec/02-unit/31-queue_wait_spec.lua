-- How long a call waits at llm-queue, with nginx's clock: it goes on only while
-- something waits for a millisecond or more, as its timers do. Semaphores are
-- ngx.semaphore's as far as that: a wait of less than a millisecond ends at
-- once. tests/nginx-host/queue.bats has real calls.

local queue_stubs = require "spec.helpers.queue_stubs"
local shared_dict = require "spec.helpers.shared_dict"
local sync_members = require "llm_gateway.sync_members"

local MOST_WAITS = 1000


describe("a call that waits at llm-queue", function()
  local kong_before, ngx_before = _G.kong, _G.ngx
  local handler, clock, waits, errors, answer, asked, jump

  -- @return milliseconds
  local function whole(seconds)
    return math.floor(seconds * 1000)
  end

  local function wait(_, seconds)
    waits = waits + 1
    assert(waits < MOST_WAITS, "waits for ever")
    clock = clock + whole(seconds)
    if jump then
      clock, jump = clock + jump, nil
    end

    return nil, "timeout"
  end

  before_each(function()
    clock, waits, errors, answer, jump = 1795769382941, 0, {}, nil, nil
    asked = {}
    local function now()
      return clock / 1000
    end
    _G.ngx = {
      now = now,
      shared = { llm_queue = shared_dict.new({ now = now }) },
      timer = { at = function()
        return true
      end },
      worker = { exiting = function()
        return false
      end },
    }
    _G.kong = {
      client = {
        get_consumer = function() end, get_credential = function() end,
      },
      ctx = { plugin = {} },
      log = { err = function(line)
        errors[#errors + 1] = line
      end },
    }
    handler = queue_stubs.handler("one", {
      of_call = function()
        return asked
      end,
      refused = function(_, by, err)
        answer = { by = by, status = err.status, message = err.message }
      end,
      semaphores = { new = function()
        return { post = function() end, wait = wait }
      end },
    })
  end)

  after_each(function()
    assert.same({}, errors)
  end)

  teardown(function()
    sync_members.set("queue", nil)
    _G.kong, _G.ngx = kong_before, ngx_before
  end)

  local function call(conf)
    kong.ctx.plugin = {}
    asked.queue_ms, answer = nil, nil
    handler:access({
      in_flight = 1, nodes = 1, max_waiting = 10, max_waiting_per_user = 10,
      max_wait_seconds = conf.seconds, others_wait_percent = 5, weights = {},
    })

    return answer
  end

  it("is refused at the millisecond, whenever it came", function()
    assert.is_nil(call({ seconds = 60 }))
    for _ = 1, 500 do
      for _, seconds in ipairs({ 0.001, 0.1, 0.3, 1, 1.001, 29.7 }) do
        clock, waits = clock + 7919, 0
        local since = clock
        assert.equal("queue", call({ seconds = seconds }).by)
        assert.equal(math.floor(seconds * 1000 + 0.5), clock - since)
        assert.equal(clock - since, asked.queue_ms)
      end
    end
  end)

  it("waits no longer than that from when the clock was set back", function()
    assert.is_nil(call({ seconds = 60 }))
    local since = clock
    jump = -3600000
    assert.equal("queue", call({ seconds = 5 }).by)
    assert.equal(5000 - 3600000 + 1000, clock - since)
  end)
end)
