local guard = require "llm_gateway.guard"


describe("guard", function()
  local lines, time, guarded

  before_each(function()
    lines = {}
    time = 1000
    guarded = guard.new(function(line)
      lines[#lines + 1] = line
    end, function()
      return time
    end)
  end)

  local function fail(what)
    error(what, 0)
  end

  it("calls with all arguments", function()
    local seen
    guarded("phase", function(...)
      seen = { ... }
    end)(1, nil, "x")
    assert.same({ 1, nil, "x" }, seen)
    assert.same({}, lines)
  end)

  it("lets no error through and logs it", function()
    assert.has_no_error(function()
      guarded("access", fail)("no luck")
    end)
    assert.same({ "access failed, the call goes on: no luck" }, lines)
  end)

  it("survives errors that are no strings", function()
    guarded("access", fail)({})
    guarded("access", fail)(nil)
    assert.equal(1, #lines)
  end)

  it("logs once a minute and says how many it did not log", function()
    local phase = guarded("access", fail)
    local other = guarded("log", fail)

    phase("one")
    for _ = 1, 10 do
      time = time + 5
      phase("two")
      other("three")
    end
    assert.equal(1, #lines)

    time = 1060
    other("four")
    assert.equal("log failed, the call goes on: four "
                 .. "(20 more errors not logged)", lines[2])

    time = 1119.9
    phase("five")
    assert.equal(2, #lines)

    time = 1120
    phase("six")
    assert.equal("access failed, the call goes on: six "
                 .. "(1 more errors not logged)", lines[3])
  end)

  it("is not silenced by a clock that was set back", function()
    local phase = guarded("access", fail)
    phase("one")
    time = 10
    phase("two")
    assert.equal(2, #lines)
  end)

  it("recovers after an error only", function()
    local recovered = 0
    local function recover()
      recovered = recovered + 1
      error("recover fails, too")
    end

    guarded("body_filter", function() end, recover)()
    assert.equal(0, recovered)

    assert.has_no_error(function()
      guarded("body_filter", fail, recover)("x")
    end)
    assert.equal(1, recovered)
  end)

  it("survives a log that fails", function()
    local broken = guard.new(error, function()
      return 0
    end)
    assert.has_no_error(function()
      broken("log", fail)("x")
    end)
  end)
end)
