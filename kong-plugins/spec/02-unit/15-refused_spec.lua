local worlds = require "spec.helpers.log_queue"


describe("refused", function()
  local kong_before, ngx_before = _G.kong, _G.ngx
  local world, refused

  before_each(function()
    world = worlds.new()
    refused = world.refused
  end)

  teardown(function()
    _G.kong, _G.ngx = kong_before, ngx_before
  end)

  for address, network in pairs({
    ["192.0.2.7"] = "192.0.2.7",
    ["::ffff:192.0.2.7"] = "192.0.2.7",
    ["2001:db8:1:2:3:4:5:6"] = "2001:db8:1:2::",
    ["2001:db8::1"] = "2001:db8:0:0::",
    ["2001:db8:1:2:3::"] = "2001:db8:1:2::",
    ["::1"] = "0:0:0:0::",
    ["::"] = "0:0:0:0::",
    ["1::2:3:4:5:6:7"] = "1:0:2:3::",
    ["unix:"] = "unix::",
  }) do
    it("counts " .. address .. " as " .. network, function()
      assert.equal(network, refused.network(address))
    end)
  end

  it("lets an address make its calls in each minute", function()
    for _ = 1, 3 do
      assert.is_false(refused.is_over(3))
    end
    assert.is_nil(world.dict["over:192.0.2.7"])
    assert.is_true(refused.is_over(3))
    assert.is_true(world.dict["over:192.0.2.7"])
    ngx.var.remote_addr = "192.0.2.8"
    assert.is_false(refused.is_over(3))
    ngx.var.remote_addr = "192.0.2.7"
    world.time = world.time + 60
    assert.is_false(refused.is_over(3))
  end)

  it("limits nothing at 0, and nothing without the dict", function()
    for _ = 1, 1000 do
      assert.is_false(refused.is_over(0))
    end
    ngx.shared.llm_gateway = nil
    for _ = 1, 10 do
      assert.is_false(refused.is_over(1))
    end
    assert.same({}, refused.take(10))
  end)

  it("hands over counts when their minute is over, and once", function()
    local minute = math.floor(world.time / 60) * 60
    for _ = 1, 5 do
      refused.note(401)
    end
    refused.note(404)
    assert.same({}, refused.take(10))

    world.time = world.time + 60
    refused.note(401)
    local taken = refused.take(10)
    local seen = {}
    for i, count in ipairs(taken) do
      seen[i] = { count.client_ip, count.minute, count.status, count.count }
    end
    assert.same({ { "192.0.2.7", minute, 401, 5 },
                  { "192.0.2.7", minute, 404, 1 } }, seen)

    refused.give_back(taken)
    assert.same(taken, refused.take(10))
    refused.forget(taken)
    assert.same({}, refused.take(10))
    world.time = world.time + 60
    assert.equal(1, #refused.take(10))
  end)

  it("counts together what comes from too many addresses", function()
    for i = 1, 6000 do
      ngx.var.remote_addr = "10.0." .. math.floor(i / 256) .. "." .. i % 256
      refused.note(401)
    end
    world.time = world.time + 60
    local taken = refused.take(10000)
    assert.equal(5001, #taken)
    local calls = 0
    for _, count in ipairs(taken) do
      calls = calls + count.count
    end
    assert.equal(6000, calls)
    assert.equal("other", taken[5001].client_ip)
    assert.equal(1000, taken[5001].count)
  end)
end)
