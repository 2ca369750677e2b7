local worlds = require "spec.helpers.log_queue"


describe("refused calls with a valid key", function()
  local kong_before, ngx_before = _G.kong, _G.ngx
  local world, refused, source, consumer, conf

  before_each(function()
    world = worlds.new()
    refused = world.refused
    assert.is_true(world.log_queue.install(world.Queue))
    source = "exit"
    consumer = { id = "id-of-alice", username = "alice" }
    conf = { capture = "full", anonymous_per_minute = 1,
             refused_per_minute = 2 }
    kong.response = { get_source = function()
      return source
    end }
    kong.client = {
      get_consumer = function()
        return consumer
      end,
      get_credential = function()
        return consumer
      end,
    }
  end)

  teardown(function()
    _G.kong, _G.ngx = kong_before, ngx_before
  end)

  local function look(status, by)
    return refused.look(conf, status, { refused_by = by })
  end

  local function look_often(times, status, by)
    local found = {}
    for i = 1, times do
      found[i] = look(status, by)
    end

    return found
  end

  -- @return the counts of minutes that are over, without their keys
  local function counts(list)
    for _, count in ipairs(list) do
      count.key, count.list = nil, nil
    end

    return list
  end

  it("leave entries until the user has made too many in a minute", function()
    assert.same({ "user", "user", "counted", "counted" },
                look_often(4, 429, "quota"))
    consumer = { id = "id-of-bob", username = "bob" }
    assert.equal("user", look(429, "quota"))
    consumer = { id = "id-of-alice", username = "alice" }
    world.time = world.time + 60
    assert.equal("user", look(429, "quota"))
  end)

  it("are told by user, minute, status and what refused them", function()
    local minute = math.floor(world.time / 60) * 60
    look_often(4, 429, "quota")
    look_often(3, 429)
    look(404, "router")
    assert.same({}, refused.take_users(10))

    world.time = world.time + 60
    local taken = refused.take_users(10)
    refused.give_back(taken)
    assert.same(taken, refused.take_users(10))
    refused.forget(taken)
    assert.same({
      { user = "alice", refused_by = "quota", minute = minute, status = 429,
        count = 2 },
      { user = "alice", refused_by = "kong", minute = minute, status = 429,
        count = 3 },
      { user = "alice", refused_by = "router", minute = minute, status = 404,
        count = 1 },
    }, counts(taken))
    assert.same({}, refused.take_users(10))
  end)

  it("are never counted by address, nor bring others a 429", function()
    look_often(50, 429, "quota")
    assert.is_nil(world.dict["over:192.0.2.7"])
    world.time = world.time + 60
    assert.same({}, refused.take(10))
  end)

  it("have nothing to do with calls without one", function()
    consumer = nil
    assert.same({ "anonymous", "counted", "counted" }, look_often(3, 401))
    consumer = { id = "id-of-alice", username = "alice" }
    assert.equal("user", look(429, "quota"))
    world.time = world.time + 60
    assert.same({}, refused.take_users(10))
    assert.equal(2, refused.take(10)[1].count)
  end)

  for what, change in pairs({
    ["an answer of the model server"] = function()
      source = "service"
    end,
    ["a model server that cannot be reached"] = function()
      source = "error"
    end,
    ["a call that came to a model server"] = function()
      ngx.var.upstream_addr = "10.0.0.1:8000"
    end,
    ["a route that leads to no model"] = function()
      conf.capture = "none"
    end,
  }) do
    it("are not " .. what, function()
      change()
      assert.same({}, look_often(9, 429))
    end)
  end

  it("are not what the gateway answers well", function()
    assert.same({}, look_often(9, 200))
  end)

  it("are not limited at 0, and not without the queue or the dict", function()
    conf.refused_per_minute = 0
    assert.equal("user", look_often(9, 429, "quota")[9])
    conf.refused_per_minute = 1
    ngx.shared.llm_gateway = nil
    assert.equal("user", look_often(9, 429, "quota")[9])
    world = worlds.new()
    kong.response = { get_source = function()
      return "exit"
    end }
    kong.client = { get_consumer = function()
      return consumer
    end }
    refused = world.refused
    assert.equal("user", look_often(9, 429, "quota")[9])
  end)

  for name, user in pairs({
    ["by-hand"] = { id = "i", username = "", custom_id = "by-hand" },
    ["only-an-id"] = { id = "only-an-id" },
    ["a:b:1"] = { id = "i", username = "a:b:1" },
    ["long"] = { id = "long", username = ("x"):rep(129) },
  }) do
    it("have the name " .. name, function()
      consumer = user
      look_often(3, 429, "queue")
      world.time = world.time + 60
      local taken = refused.take_users(10)
      assert.equal(name, taken[1].user)
      assert.equal("queue", taken[1].refused_by)
    end)
  end

  it("are counted together where there are too many", function()
    conf.refused_per_minute = 1
    for i = 1, 6000 do
      consumer = { id = "i" .. i, username = "u" .. i }
      look_often(2, 429, "quota")
    end
    world.time = world.time + 60
    local taken = refused.take_users(10000)
    assert.equal(5001, #taken)
    assert.equal("", taken[5001].user)
    assert.equal(1000, taken[5001].count)
  end)
end)
