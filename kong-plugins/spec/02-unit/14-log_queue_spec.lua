local cjson = require "cjson"
local worlds = require "spec.helpers.log_queue"


describe("log_queue", function()
  local kong_before, ngx_before = _G.kong, _G.ngx
  local world, conf, sent

  before_each(function()
    world = worlds.new()
    sent = {}
    conf = worlds.settings(8000)
    assert.is_true(world.log_queue.install(world.Queue))
  end)

  teardown(function()
    _G.kong, _G.ngx = kong_before, ngx_before
  end)

  local function handler(_, entries)
    if world.refuses then
      return nil, "status 503"
    end
    for _, entry in ipairs(entries) do
      sent[#sent + 1] = cjson.decode(entry)
    end
    return true
  end

  -- What the log phase of a call does: llm-audit, then http-log.
  local function call(body, changes)
    world.entry = { llm = { seq = world.sequence.next() },
                    ["request.body"] = body }
    kong.ctx.shared = {}
    local entry = { seq = world.sequence.next(), has_bodies = body ~= nil }
    for name, value in pairs(changes or {}) do
      entry[name] = value
    end
    world.log_queue.expect(entry)
    return world.Queue.enqueue(conf, handler, {}, cjson.encode(world.entry))
  end

  local function numbers()
    local list = {}
    for i, entry in ipairs(sent) do
      list[i] = entry.llm.seq
    end
    return list
  end

  it("hands entries on in order", function()
    for _ = 1, 3 do
      assert.is_true(call("x"))
    end
    world:run_timers()
    assert.same({ 1, 2, 3 }, numbers())
    assert.equal(3, world.dict["given:" .. world.sequence.worker()])
    assert.equal(3, world.queue_keeper.state().done)
  end)

  it("sheds bodies, then leaves entries out, and keeps what it has", function()
    for _ = 1, 200 do
      call(("x"):rep(1000))
    end
    world:run_timers()
    local whole, shed = 0, 0
    for i, entry in ipairs(sent) do
      assert.equal(i, entry.llm.seq)
      if entry["llm.shed"] then
        shed = shed + 1
        assert.is_nil(entry["request.body"])
      else
        whole = whole + 1
      end
    end
    -- Of 1030 bytes in 7000; of about 36 in what is left of 8000.
    assert.equal(6, whole)
    assert.is_true(shed >= 28 and shed <= 60, shed)
    assert.equal(200, world.sequence.last())
    assert.equal(200 - #sent, world.queue_keeper.state().lost)
    assert.equal(200, world.queue_keeper.state().done)
    -- Once a minute, and none of Kong's own words about an overflow.
    assert.equal(1, #world.said)
    assert.matches("^1 entries of the log queue were left out", world.said[1])

    call("after")
    world:run_timers()
    assert.equal(201, sent[#sent].llm.seq)
  end)

  it("counts the batch that is on its way", function()
    world.refuses = true
    world.on_sleep = function()
      world.on_sleep = nil
      world.phase = "log"
      for _ = 1, 50 do
        call(("x"):rep(1000))
      end
      world.phase = "timer"
      local state = world.queue_keeper.state()
      assert.is_true(state.bytes <= 8000, state.bytes)
      assert.equal(0, state.done)
      world.refuses = false
    end
    for _ = 1, 5 do
      call(("x"):rep(1000))
    end
    world:run_timers()
    assert.equal(5, numbers()[5])
    assert.is_true(#sent > 7)
  end)

  it("gives refused calls a sixteenth", function()
    for _ = 1, 500 do
      call(nil, { refused = true })
    end
    for _ = 1, 5 do
      call(("x"):rep(1000))
    end
    world:run_timers()
    local refused = #sent - 5
    -- Of some 18 bytes in 500.
    assert.is_true(refused > 20 and refused < 30, refused)
    assert.same({ 501, 502, 503, 504, 505 },
                { unpack(numbers(), refused + 1) })
    -- Their places are free again.
    call(nil, { refused = true })
    world:run_timers()
    assert.equal(506, sent[#sent].llm.seq)
  end)

  it("gives no number to an entry that no plugin sends", function()
    world.entry = { llm = {} }
    kong.ctx.shared = {}
    world.log_queue.expect({ seq = world.sequence.next() })
    call("x")
    call("x", { kept_out = true })
    call("x")
    world:run_timers()
    assert.same({ 1, 2 }, numbers())
  end)

  it("adds the entry of an interrupted upload in http-log's place", function()
    local function interrupted(name)
      world.entry = { llm = { seq = world.sequence.next() }, name = name }
      kong.ctx.shared = {}
      world.log_queue.add_alone({ seq = world.sequence.next() },
                                world.entry.llm)
    end

    interrupted("first of the worker")
    assert.equal(0, world.sequence.last())
    call("x")
    interrupted("later")
    world:run_timers()
    assert.same({ 1, 2, 3 }, numbers())
    assert.equal("first of the worker", sent[2].name)
    assert.equal("later", sent[3].name)
  end)

  it("leaves the queues of other plugins alone", function()
    conf.log_tag = "opentelemetry plugin x"
    call("x")
    assert.equal(0, world.sequence.last())
    conf.log_tag = "http-log plugin x"
    world.phase = "timer"
    call("x")
    assert.equal(0, world.sequence.last())
  end)

  it("survives an overflow of Kong's own, in any queue", function()
    conf.log_tag = "other"
    for _ = 1, 20 do
      call(("x"):rep(1000))
    end
    -- That many permits are left of which the entries are gone.
    assert.is_true(#world.said > 5)
    world:run_timers()
    assert.same({ 7, #sent }, { #sent, 7 })
    call("after")
    world:run_timers()
    assert.equal("after", sent[#sent]["request.body"])
  end)

  it("goes on after an error in Kong's queue", function()
    local failures = 0
    call("x")
    local queue
    local count = world.Queue.count
    world.Queue.count = function(self)
      queue = self
      return count(self)
    end
    call("x")
    local entries = queue.entries
    queue.entries = setmetatable({}, { __index = function(_, place)
      if failures < 2 then
        failures = failures + 1
        error("broken")
      end
      return entries[place]
    end })
    world:run_timers()
    assert.equal(2, failures)
    -- What it had taken may be gone; it did not spin, and it goes on.
    assert.is_true(#world.sleeps >= 1)
    call("after")
    world:run_timers()
    assert.equal("after", sent[#sent]["request.body"])
  end)

  it("empties a queue that nobody empties", function()
    for _ = 1, 3 do
      call("x")
    end
    -- The timer is lost.
    world.timers = {}
    for _ = 1, 4 do
      world.queue_keeper.check()
    end
    assert.same({}, world.timers)
    world.queue_keeper.check()
    world:run_timers()
    assert.same({ 1, 2, 3 }, numbers())
    assert.matches("nobody sent the 3 log entries", world.said[1])
  end)

  it("gives a dead collector 30 seconds when the worker ends", function()
    for _ = 1, 25 do
      call("x")
    end
    world.refuses = true
    world.exiting = true
    local began = world.time
    world:run_timers()
    assert.same({}, sent)
    assert.is_true(world.time - began >= 30)
    assert.is_true(world.time - began < 60, world.time - began)
    assert.equal(25, world.queue_keeper.state().lost)
  end)

  it("keeps trying for as long as it is told to otherwise", function()
    call("x")
    world.refuses = true
    world.on_sleep = function()
      world.refuses = world.time < 1700003600
      if world.refuses then
        assert.is_true(world.queue_keeper.state().stalled_seconds > 0)
      end
    end
    world:run_timers()
    assert.same({ 1 }, numbers())
    assert.equal(0, world.queue_keeper.state().stalled_seconds)
  end)

  it("touches nothing of a module that looks different", function()
    local other = worlds.new()
    for _, module in ipairs({ 7, {}, { enqueue = print } }) do
      local ok, err = other.log_queue.install(module)
      assert.is_nil(ok)
      assert.is_string(err)
    end
    assert.is_false(other.log_queue.is_installed())
    other.log_queue.expect({ seq = other.sequence.next() })
    assert.equal(1, other.sequence.last())
  end)
end)
