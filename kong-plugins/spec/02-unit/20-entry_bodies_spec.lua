local cjson = require "cjson"
local worlds = require "spec.helpers.log_queue"


-- What a request body and a response body become, from the log phase of
-- llm-audit to what http-log sends.
describe("the bodies of an entry", function()
  local kong_before, ngx_before = _G.kong, _G.ngx
  local world, conf, sent, encoded

  before_each(function()
    world = worlds.new()
    world.route = { id = "route-1" }
    sent = {}
    conf = worlds.settings()
    assert.is_true(world.log_queue.install(world.Queue))
  end)

  teardown(function()
    _G.kong, _G.ngx = kong_before, ngx_before
  end)

  local function handler(_, entries)
    for _, entry in ipairs(entries) do
      sent[#sent + 1] = cjson.decode(entry)
    end
    return true
  end

  local function llm_audit(bodies, is_alone)
    world.entry = { llm = { seq = world.sequence.next() } }
    kong.ctx.shared = {}
    local entry = world.entry_bodies.new(world.sequence.next(), false,
                                         bodies.request, bodies.response,
                                         bodies.is_encoded)
    world.entry_bodies.set(entry, is_alone)
    world.log_queue.expect(entry)
  end

  local function http_log()
    encoded = cjson.encode(world.entry)
    assert.is_true(world.Queue.enqueue(conf, handler, {}, encoded))
  end

  local function both(request, response, is_encoded)
    return { request = request, response = response, is_encoded = is_encoded }
  end

  -- One call, so that http-log is known to run for the route.
  local function first_call()
    llm_audit(both('{"first":1}', '{"first":2}'))
    http_log()
  end

  local function last()
    world:run_timers()
    return sent[#sent]
  end

  it("arrive as they are, from the first call on", function()
    for i = 1, 4 do
      local request = '{"question":"' .. i .. ' é \\" \\\\ \n\t/大"}'
      llm_audit(both(request, "data: [" .. i .. "]\n\n"))
      http_log()
      assert.equal(request, last()["request.body"])
      assert.equal("data: [" .. i .. "]\n\n", last()["response.body"])
      assert.equal(i, last().llm.seq)
    end
  end)

  it("cost cjson nothing once http-log is known to run", function()
    local long = '{"a":"' .. ("word "):rep(2000) .. '"}'
    first_call()
    llm_audit(both(long, long))
    http_log()
    assert.is_true(#encoded < 400)
    assert.equal(long, last()["response.body"])
  end)

  it("arrive wherever they stand in the entry", function()
    local function in_order(first, second)
      llm_audit(both('{"a":1}', "[2]"))
      local marks = world.entry
      encoded = ('{"llm":{"seq":1},"%s":"%s","x":"~","%s":"%s","y":1}'):format(
        first, marks[first], second, marks[second])
      assert.is_true(world.Queue.enqueue(conf, handler, {}, encoded))
      return last()
    end

    first_call()
    local expected = { ["request.body"] = '{"a":1}', ["response.body"] = "[2]",
                       llm = { seq = 1 }, x = "~", y = 1 }
    assert.same(expected, in_order("request.body", "response.body"))
    assert.same(expected, in_order("response.body", "request.body"))
  end)

  it("arrive as they are behind a large entry", function()
    first_call()
    for i = 1, 3 do
      local large = "{" .. (i .. " words, "):rep(100000)
      llm_audit(both(large, "[" .. i))
      http_log()
      assert.is_true(large == last()["request.body"])
      assert.equal("[" .. i, last()["response.body"])

      llm_audit(both("{" .. i, "[" .. i))
      http_log()
      assert.equal("{" .. i, last()["request.body"])
    end
  end)

  it("arrive where there is only one", function()
    first_call()
    llm_audit(both(nil, "{}"))
    http_log()
    assert.equal("{}", last()["response.body"])
    assert.is_nil(last()["request.body"])
  end)

  it("are base64 where they are no text", function()
    for _ = 1, 2 do
      llm_audit(both("{\255}", "{gzip}", true))
      http_log()
      assert.equal("base64:3", last()["request.body"])
      assert.equal("base64:6", last()["response.body"])
    end
  end)

  it("are in the entry for log plugins behind http-log", function()
    first_call()
    llm_audit(both('{"a":"text"}', "{\1}"))
    assert.not_equal('{"a":"text"}', world.entry["request.body"])
    http_log()
    assert.equal('{"a":"text"}', world.entry["request.body"])
    assert.equal("base64:3", world.entry["response.body"])
  end)

  it("are in the entry at once where http-log did not run before", function()
    first_call()
    -- it was taken away: nobody fills in what the first such call left
    llm_audit(both("{1}", "{2}"))
    llm_audit(both("{3}", "{4}"))
    assert.equal("{3}", world.entry["request.body"])

    http_log()
    world.route = { id = "route-2" }
    llm_audit(both("{5}", "{6}"))
    assert.equal("{5}", world.entry["request.body"])
  end)

  it("are in the entry at once of a call that http-log does not see",
     function()
    first_call()
    llm_audit(both("{1}", "{2}"), true)
    assert.equal("{2}", world.entry["response.body"])
  end)

  it("arrive without a route, and with more routes than are remembered",
     function()
    for i = 1, 1100 do
      world.route = { id = "route-" .. i }
      first_call()
      last()
    end
    world.route = nil
    for i = 1, 3 do
      llm_audit(both("{" .. i, "[" .. i))
      http_log()
      assert.equal("{" .. i, last()["request.body"])
    end
  end)

  it("do not go where a client says", function()
    first_call()
    llm_audit(both('{"a":1}', '{"b":1}'))
    local mark = world.entry["request.body"]
    http_log()

    -- The next mark is the same, but no mark holds what a client can know.
    assert.equal(32, #assert(mark:match("^~(%x+):request%.body$")))
    local other = worlds.new()
    other.route = world.route
    other.log_queue.install(other.Queue)
    world = other
    first_call()
    llm_audit(both("{}", "{}"))
    assert.not_equal(mark, world.entry["request.body"])
  end)

  it("may be taken out by another plugin", function()
    first_call()
    llm_audit(both('{"a":1}', '{"b":1}'))
    world.entry["request.body"] = nil
    http_log()
    assert.is_nil(last()["request.body"])
    assert.equal('{"b":1}', last()["response.body"])
    assert.is_nil(world.entry["request.body"])
  end)

  it("are left out when there is no room", function()
    conf.max_bytes = 900
    for _ = 1, 6 do
      llm_audit(both("{" .. ("a"):rep(300), "{" .. ("b"):rep(300)))
      http_log()
    end
    last()
    local shed = sent[#sent]
    assert.is_true(shed["llm.shed"])
    assert.is_nil(shed["request.body"])
    assert.is_nil(world.entry["request.body"])
  end)
end)
