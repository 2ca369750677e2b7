local MIB = 1048576
local MODULE = "llm_gateway.upload_room"


describe("room for bodies", function()
  local room

  before_each(function()
    package.loaded[MODULE] = nil
    room = require(MODULE)
  end)

  it("is not taken by small bodies, nor without a bound", function()
    for _ = 1, 1000 do
      assert.is_nil((room.take("alice", MIB, 10 * MIB)))
      assert.is_nil((room.take("alice", 900 * MIB, 0)))
      assert.is_nil((room.take("alice", nil, 0)))
    end
    assert.is_table(room.take("alice", 9 * MIB, 10 * MIB))
  end)

  it("is for one user half of it, for all as much as there is", function()
    local holdings = {}
    for _, user in ipairs({ "alice", "bob" }) do
      for i = 1, 5 do
        local holding = room.take(user, 10 * MIB, 100 * MIB)
        assert.is_table(holding, user .. i)
        holdings[#holdings + 1] = holding
      end
      local _, why = room.take(user, 10 * MIB, 100 * MIB)
      assert.equal("user", why)
    end

    local _, why = room.take("carol", 2 * MIB, 100 * MIB)
    assert.equal("all", why)

    for _, holding in ipairs(holdings) do
      room.give_back(holding)
    end
    for _ = 1, 5 do
      assert.is_table(room.take("alice", 10 * MIB, 100 * MIB))
    end
  end)

  it("is taken by bodies that hide their size, until they are there", function()
    local holdings = {}
    for i = 1, 4 do
      holdings[i] = room.take("alice", nil, 100 * MIB)
      assert.is_table(holdings[i])
    end
    assert.same({ nil, "user" }, { room.take("alice", nil, 100 * MIB) })
    assert.is_table(room.take("bob", nil, 100 * MIB))

    room.settle(holdings[1], 0)
    assert.is_table(room.take("alice", nil, 100 * MIB))
    room.settle(holdings[2], 60 * MIB)
    room.give_back(holdings[1])
    assert.same({ nil, "user" }, { room.take("alice", 2 * MIB, 100 * MIB) })
    room.give_back(holdings[2])
    assert.is_table(room.take("alice", 2 * MIB, 100 * MIB))
  end)

  it("lets one body in that is larger than half of it", function()
    assert.is_table(room.take("alice", 90 * MIB, 100 * MIB))
    assert.same({ nil, "user" }, { room.take("alice", 2 * MIB, 100 * MIB) })
    assert.same({ nil, "all" }, { room.take("bob", 20 * MIB, 100 * MIB) })
    assert.is_table(room.take("bob", 9 * MIB, 100 * MIB))
  end)
end)
