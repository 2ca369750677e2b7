-- Who waits at llm-queue, and who is due: places over several workers, the
-- reserve, the order. tests/nginx-host/queue.bats has calls.

local gauges = require "kong.plugins.llm-queue.gauges"
local places_of = require "kong.plugins.llm-queue.places"
local shared_dict = require "spec.helpers.shared_dict"
local turns_of = require "kong.plugins.llm-queue.turns"
local weights = require "kong.plugins.llm-queue.weights"


describe("places of an upstream", function()
  local time, dict, one, two

  local function now()
    return time
  end

  before_each(function()
    time = 1000
    dict = shared_dict.new({ now = now })
    one, two = places_of.new(dict, "one", now), places_of.new(dict, "two", now)
    one:live()
    two:live()
  end)

  it("are never more than there are, whoever asks", function()
    local held = {}
    math.randomseed(7)
    for _ = 1, 2000 do
      local worker = math.random(2) == 1 and one or two
      if math.random(2) == 1 then
        local place = worker:hold("m", "u" .. math.random(5), 3)
        if place then
          held[#held + 1] = { worker, place }
        end
      elseif #held > 0 then
        local pick = table.remove(held, math.random(#held))
        pick[1]:release(pick[2])
      end
      assert.is_true(#held <= 3)
      assert.equal(#held, (one:state("m")))
    end
    for _, pick in ipairs(held) do
      pick[1]:release(pick[2])
    end
    assert.equal(0, (one:state("m")))
    for user = 1, 5 do
      assert.equal(0, one:held_by("m", "u" .. user))
    end
  end)

  it("of a worker that dies are given back, and what it waited for", function()
    local place = one:hold("a:b", "x:y", 2)
    two:hold("a:b", "x:y", 2)
    one:wait("a:b", "z")
    assert.is_nil(two:hold("a:b", "q", 2))
    time = time + 9
    two:live()
    two:bury()
    assert.equal(2, (two:state("a:b")))
    time = time + 2
    two:bury()
    assert.same({ 1, 0, 0 }, { two:state("a:b") })
    assert.equal(1, two:held_by("a:b", "x:y"))
    assert.equal(0, two:waiting_of("a:b", "z"))
    -- it was only slow
    one:live()
    one:release(place)
    assert.equal(1, (two:state("a:b")))
  end)

  it("are not counted where there is no room, and the call goes on", function()
    dict.room = dict.count
    local place = one:hold("m", "bob", 1)
    assert.is_table(place)
    one:release(place)
    assert.is_nil(one:wait("m", "bob"))
    assert.same({ 0, 0, 0 }, { one:state("m") })
  end)

  it("are shared: whoever holds his part and more is greedy", function()
    for _ = 1, 4 do
      assert.is_false(one:is_greedy("m", "bob", 1, 8))
      one:hold("m", "bob", 8)
    end
    assert.is_true(one:is_greedy("m", "bob", 1, 8))
    assert.is_false(one:is_greedy("m", "bob", 2, 8))
    assert.is_false(one:is_greedy("m", "alice", 1, 8))
  end)

  -- A call that holds a place for some seconds.
  local function serve(user, seconds, is_other)
    local place = one:hold("m", user, 1000, is_other)
    time = time + seconds
    one:release(place)
    time = time - seconds
  end

  it("are a user's share on average, too", function()
    -- Of eight places sixteen users have half a one each.
    for number = 1, 16 do
      serve("u" .. number, 0.1, true)
    end
    assert.is_false(one:is_greedy("m", "u1", 1, 8))
    for _ = 1, 15 do
      serve("u1", 1, false)
    end
    assert.is_true(one:is_greedy("m", "u1", 1, 8))
    assert.is_false(one:is_greedy("m", "u1", 2, 8))
    time = time + 90
    assert.is_false(one:is_greedy("m", "u1", 1, 8))
  end)

  it("are wanted without end by whoever has many calls that wait", function()
    for _ = 1, 7 do
      one:wait("m", "bob")
    end
    assert.is_false(one:is_greedy("m", "bob", 1, 1000))
    two:wait("m", "bob")
    assert.is_true(one:is_greedy("m", "bob", 1, 1000))
  end)

  it("are kept free for others as they need them", function()
    assert.equal(0, one:reserve("m", "bob", 8, 0.05))
    serve("u1", 0.02, true)
    assert.equal(0, one:reserve("m", "bob", 8, 0.05))
    serve("u1", 0.1, true)
    assert.equal(1, one:reserve("m", "bob", 8, 0.05))
    -- Ten calls a second of a quarter of a second: 2.5 places on average, and
    -- by Poisson six or more at a time in 4.2 % of it, nine in 0.1 %.
    for number = 1, 600 do
      time = time + 0.1
      serve("u" .. number % 20, 0.25, true)
    end
    assert.equal(6, one:reserve("m", "bob", 8, 0.05))
    assert.equal(6, one:reserve("m", "bob", 40, 0.05))
    assert.equal(5, one:reserve("m", "bob", 40, 0.2))
    assert.equal(9, one:reserve("m", "bob", 40, 0.002))
    assert.equal(3, one:reserve("m", "bob", 4, 0.002))
    assert.equal(0, one:reserve("m", "bob", 40, 1))
    -- What they hold now counts.
    one:hold("m", "u1", 8, true)
    two:hold("m", "u2", 8, true)
    two:hold("m", "bob", 8, false)
    assert.equal(4, one:reserve("m", "bob", 8, 0.05))
    time = time + 300
    assert.equal(0, one:reserve("m", "bob", 8, 0.05))
  end)

  it("are known to be needed after a few seconds", function()
    time = 1020
    for _ = 1, 30 do
      time = time + 0.1
      serve("alice", 0.25, true)
    end
    assert.equal(6, one:reserve("m", "bob", 40, 0.05))
  end)

  it("are not kept free for the user himself", function()
    for _ = 1, 100 do
      time = time + 0.1
      serve("bob", 0.25, true)
    end
    assert.equal(0, one:reserve("m", "bob", 8, 0.05))
    assert.is_true(one:reserve("m", "alice", 8, 0.05) > 0)
  end)

  it("count for who has to leave some to others, over workers", function()
    local places = { one:hold("m", "a", 9, true), two:hold("m", "b", 9, false),
                     two:hold("m", "a", 9, true) }
    assert.same({ 3, 0, 2 }, { one:state("m") })
    two:release(places[3])
    assert.same({ 2, 0, 1 }, { one:state("m") })
    -- The second one dies.
    time = time + 9
    one:live()
    time = time + 2
    one:bury()
    assert.same({ 1, 0, 1 }, { one:state("m") })
    one:release(places[1])
    assert.same({ 0, 0, 0 }, { one:state("m") })
  end)

  it("are there, whatever was given back too often", function()
    for _, is_other in ipairs({ true, false }) do
      local place = one:hold("m", "bob", 2, is_other)
      -- As if another worker had taken it back a moment before.
      dict:incr("n:m", is_other and -1 - 2 ^ 20 or -1)
      one:release(place)
    end
    assert.same({ -2, 0, -1 }, { one:state("m") })
    assert.is_table(one:hold("m", "bob", 2, true))
    assert.is_table(one:hold("m", "bob", 2, true))
    assert.same({ 0, 0, 1 }, { one:state("m") })
  end)

  it("are told", function()
    one:hold("m", "bob", 8)
    two:hold("m", "bob", 8)
    two:hold("m", "alice", 8)
    two:wait("m", "carol")
    one:wait("other", "carol")
    assert.same({
      models = { m = { in_flight = 3, waiting = 1,
                       share = { user = "bob", places = 2 } },
                 other = { in_flight = 0, waiting = 1 } },
      waiting = { carol = 2 },
    }, gauges.of(dict.values))
  end)

  it("go to the call of another worker that is due before", function()
    one:name("m", 5)
    assert.is_true(two:is_passed("m", 6))
    assert.is_false(two:is_passed("m", 4))
    assert.is_false(one:is_passed("m", 6))
    one:name("m", nil)
    assert.is_false(two:is_passed("m", 6))
    one:name("m", 5)
    time = time + 2
    assert.is_false(two:is_passed("m", 6))
  end)
end)


describe("the call that is due first", function()
  local turns, held

  local function join(user, class, since, weight)
    local call = { upstream = "m", user = user, class = class,
                   since = since, weight = weight or 1 }
    turns:join(call)
    return call
  end

  local function first()
    return (turns:first("m", function(_, user)
      return held[user] or 0
    end))
  end

  before_each(function()
    turns, held = turns_of.new(), {}
  end)

  it("is that of who holds least for his weight, then the oldest", function()
    local bob, alice = join("bob", "interactive", 1),
                       join("alice", "interactive", 3)
    local carol = join("carol", "interactive", 2)
    held = { bob = 2, alice = 1, carol = 1 }
    assert.equal(carol, first())
    turns:leave(carol)
    assert.equal(alice, first())
    held.alice = 2
    assert.equal(bob, first())
    local heavy = join("heavy", "interactive", 9, 3)
    held.heavy = 3
    assert.equal(heavy, first())
  end)

  it("is interactive before batch, and that before who waits behind", function()
    local behind, batch = join("a", "behind", 1), join("b", "batch", 2)
    local usual = join("c", "interactive", 3)
    held = { c = 50 }
    assert.equal(usual, first())
    turns:leave(usual)
    assert.equal(batch, first())
    turns:leave(batch)
    assert.equal(behind, first())
  end)

  it("is the next one when another one leaves, wherever it stood", function()
    local calls = {}
    for number = 1, 6 do
      calls[number] = join("bob", "interactive", number)
    end
    turns:leave(calls[3])
    turns:leave(calls[1])
    turns:leave(calls[1])
    assert.equal(calls[2], first())
    turns:leave(calls[2])
    assert.equal(calls[4], first())
    for number = 4, 6 do
      turns:leave(calls[number])
    end
    assert.is_nil(first())
    assert.equal(0, turns.count)
    assert.same({}, turns.upstreams)
  end)
end)


describe("a weight", function()
  local function of(tags, user, team)
    return weights.weight({ tags = tags }, user, team,
                          { alice = 3, ["team:ml"] = 2 })
  end

  it("is the consumer's, the user's, the team's, or one", function()
    assert.equal(7, of({ "weight:7" }, "alice", "ml"))
    assert.equal(1000, of({ "weight:99999" }, "alice", "ml"))
    assert.equal(3, of({ "weight:0" }, "alice", "ml"))
    assert.equal(3, of({ "weight:-1", "weight:x" }, "alice", "ml"))
    assert.equal(2, of({}, "bob", "ml"))
    assert.equal(1, of(nil, "bob", nil))
  end)

  it("divides tokens, and classes come apart in vLLM's queue", function()
    assert.equal(100, weights.priority("interactive", 300, 3))
    assert.equal(1000000, weights.priority("batch", 0, 1))
    assert.equal(999999, weights.priority("interactive", 1e12, 1))
    assert.equal("batch", weights.class({ tags = { "class:batch" } }))
    assert.equal("interactive", weights.class({ tags = { "class:x" } }))
    assert.equal("interactive", weights.class(nil))
  end)

  it("is of tokens that fade", function()
    assert.equal(100, weights.faded(100, 5, 5))
    assert.is_true(weights.faded(100, 0, 300) < 37)
    assert.equal(16, weights.tokens({ prompt_tokens = 7, output_tokens = 9 }))
    assert.equal(0, weights.tokens(nil))
  end)
end)
