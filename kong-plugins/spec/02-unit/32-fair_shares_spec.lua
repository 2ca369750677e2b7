-- What llm-queue does for people while somebody floods the model server, in
-- simulated time: the plugin's own handler in several workers, and a server of
-- fixed capacity. `make bench-fair` shows more of it.

local fair_load = require "spec.helpers.fair_load"
local sync_members = require "llm_gateway.sync_members"


describe("while somebody floods the model server", function()
  local kong_before, ngx_before = _G.kong, _G.ngx

  after_each(function()
    sync_members.set("queue", nil)
    _G.kong, _G.ngx = kong_before, ngx_before
  end)

  -- @param least calls and tokens a second, as parts of those without the queue
  local function protects(load, least_calls, least_tokens)
    load.seconds = 180
    local alone, without, with = fair_load.compare(load)
    assert.same({}, with.errors)
    -- The load is one that hurts.
    assert.is_true(without.p95 > 100 * alone.p95)
    assert.is_true(with.p95 <= 1.5 * alone.p95,
                   with.p95 .. " s, " .. alone.p95 .. " alone")
    assert.is_true(with.people > 0.98 * alone.people, with.people)
    assert.is_true(with.calls >= least_calls * without.calls, with.calls)
    assert.is_true(with.tokens >= least_tokens * without.tokens, with.tokens)
  end

  it("people get their first token as on an idle server", function()
    protects({ people = 20 }, 1.1, 0.55)
    protects({ people = 20, is_random = true, workers = 4 }, 1.1, 0.55)
  end)

  it("and of several such users none gets at them", function()
    protects({ people = 45, greedy = 5, in_flight = 50 }, 1.5, 0.5)
  end)

  it("and of a batch user", function()
    protects({ people = 20, class = "batch" }, 1.1, 0.55)
  end)

  it("he gets what the others leave, and all without others", function()
    local _, without, with = fair_load.compare({
      people = 20, config = { others_wait_percent = 100 },
    })
    assert.is_true(with.tokens > 0.93 * without.tokens, with.tokens)
    assert.is_true(with.people > 9 * without.people, with.people)

    _, without, with = fair_load.compare({ people = 0 })
    assert.is_true(with.tokens > 0.98 * without.tokens, with.tokens)
  end)

  it("and another one, too, they share by their weights", function()
    local found = fair_load.run({ people = 0, weights = { 3, 1 } }, 2)
    local ratio = found.greedy[1] / found.greedy[2]
    assert.is_true(ratio > 2.7 and ratio < 3.3, ratio)
    found = fair_load.run({ people = 0 }, 2)
    ratio = found.greedy[1] / found.greedy[2]
    assert.is_true(ratio > 0.9 and ratio < 1.1, ratio)
  end)
end)
