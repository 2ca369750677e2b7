local worlds = require "spec.helpers.log_queue"


describe("the numbers of the workers", function()
  local ngx_before, kong_before = _G.ngx, _G.kong
  local world, looked_at
  before_each(function()
    world = worlds.new()
    looked_at = {}

    local dict = ngx.shared.llm_gateway
    local get = dict.get
    dict.get = function(self, key)
      looked_at[key] = true
      return get(self, key)
    end
  end)

  teardown(function()
    _G.ngx, _G.kong = ngx_before, kong_before
  end)

  -- @return slot → name of the workers that are known
  local function seen()
    looked_at = {}
    local names = {}
    world.sequence.each_worker(function(slot, name)
      names[slot] = name
    end)

    return names
  end

  it("are looked for where there ever was a worker", function()
    local sequence = world.sequence
    local first = sequence.worker()
    assert.same({ first }, seen())
    assert.is_nil(looked_at["worker:2"])

    local names = { first }
    for slot = 2, 5 do
      assert.is_true(sequence.start())
      names[slot] = sequence.worker()
    end
    assert.same(names, seen())
    assert.is_nil(looked_at["worker:6"])

    -- who comes later takes the place, and who is behind it stays in sight
    sequence.forget(2, names[2])
    names[2] = nil
    assert.same(names, seen())
    assert.is_true(sequence.start())
    names[2] = sequence.worker()
    assert.same(names, seen())
    assert.is_nil(looked_at["worker:6"])
  end)

  it("find those that took a slot before slots were counted", function()
    local dict = ngx.shared.llm_gateway
    dict:delete("worker-slots")
    for slot = 1, 3 do
      dict:set("worker:" .. slot, "old-" .. slot)
    end
    assert.is_true(world.sequence.start())
    assert.same({ "old-1", "old-2", "old-3", world.sequence.worker() }, seen())
  end)

  it("are all looked for where there is no room for a count", function()
    local dict = ngx.shared.llm_gateway
    dict:delete("worker-slots")
    dict.incr = function()
      return nil, "no memory"
    end
    assert.is_true(world.sequence.start())
    dict:set("worker:256", "the last")
    assert.equal("the last", seen()[256])
  end)

  it("have an end", function()
    local sequence = world.sequence
    for _ = 2, sequence.MAX_WORKERS do
      assert.is_true(sequence.start())
    end
    assert.is_false(sequence.start())
    assert.equal(sequence.MAX_WORKERS, #seen())
  end)
end)
