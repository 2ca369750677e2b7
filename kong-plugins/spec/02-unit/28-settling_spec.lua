-- What llm-audit tells of a call for which a limit holds: under which number it
-- is counted, and what the server reported, with bodies as well.

local around = require "spec.helpers.around"
local cjson = require "cjson"
local fixtures = require "spec.helpers.fixtures"
local gateway = require "spec.helpers.gateway"
local worlds = require "spec.helpers.log_queue"

local SSE = { ["Content-Type"] = "text/event-stream; charset=utf-8" }
local JSON = { ["Content-Type"] = "application/json" }
local ANSWER = '{"model":"m","choices":[],"usage":{"prompt_tokens":5,'
               .. '"completion_tokens":7}}'


describe("llm-audit", function()
  local running, told

  around(function(gateway_of_test)
    running = gateway_of_test
  end)

  before_each(function()
    told = {}
  end)

  local function call(response, has_limit)
    local asked = { limited = has_limit ~= false and {
      on_number = function(_, ...)
        told[#told + 1] = { ... }
      end,
    } or nil, wants_usage = has_limit ~= false }

    return running:call({ request = { body = '{"model":"m"}' },
                          response = response, asked = asked })
  end

  it("tells the number, the entry's part, and what was reported", function()
    running = gateway.new({ capture = "full" })
    local result = call({ headers = JSON, chunks = { ANSWER } })
    assert.equal(1, #told)
    assert.equal(result.llm.seq, told[1][1])
    assert.equal(result.llm, told[1][2])
    assert.equal("m", result.llm.model)
    assert.same({ prompt_tokens = 5, completion_tokens = 7 },
                result.llm.usage)
    assert.equal(ANSWER, result.entry.response.body)
    assert.equal(2, call({ headers = JSON, chunks = { ANSWER } }).llm.seq)
    assert.equal(2, told[2][1])
  end)

  it("reads streams, also what their clients are not shown", function()
    running = gateway.new({ capture = "full" })
    local asked = { wants_usage = true,
                    limited = { on_number = function() end } }
    local result = running:call({
      request = { body = fixtures.request("chat-en-stream") },
      response = { headers = SSE,
                   chunks = fixtures.chunks("chat-en-stream-usage") },
      asked = asked,
    })
    assert.equal(65, result.llm.usage.completion_tokens)
    assert.equal("qwen-tiny", result.llm.model)
    assert.is_false(result.llm.aborted)
  end)

  it("leaves it to the collector where no limit holds", function()
    running = gateway.new({ capture = "full" })
    local result = call({ headers = JSON, chunks = { ANSWER } }, false)
    assert.is_nil(result.llm.usage)
    assert.is_nil(result.llm.model)
    assert.same({}, told)
  end)

  it("says where the server reports what cannot be read", function()
    running = gateway.new({ capture = "full" })
    local headers = { ["Content-Type"] = "application/json",
                      ["Content-Encoding"] = "gzip" }
    local result = call({ headers = headers, chunks = { "\31\139" } })
    assert.is_nil(result.llm.usage)
    assert.is_true(told[1][3])
    call({ headers = JSON, chunks = { '{"choices":[]}' } })
    assert.is_false(told[2][3])
  end)

  it("tells it with capture=metadata, too", function()
    running = gateway.new({ capture = "metadata" })
    call({ headers = JSON, chunks = { ANSWER } })
    assert.equal(7, told[1][2].usage.completion_tokens)
  end)
end)


describe("log_queue", function()
  local kong_before, ngx_before = _G.kong, _G.ngx
  local world, conf, told

  before_each(function()
    world = worlds.new()
    conf = worlds.settings(8000)
    told = {}
    assert.is_true(world.log_queue.install(world.Queue))
  end)

  teardown(function()
    _G.kong, _G.ngx = kong_before, ngx_before
  end)

  local function call(changes)
    world.entry = { llm = { seq = world.sequence.next() } }
    kong.ctx.shared = {}
    local entry = { seq = world.sequence.next(), llm = world.entry.llm,
                    limited = { on_number = function(_, number, llm)
                      told[#told + 1] = { number, llm }
                    end } }
    for name, value in pairs(changes or {}) do
      entry[name] = value
    end
    world.log_queue.expect(entry)

    return world.Queue.enqueue(conf, function()
      return true
    end, {}, cjson.encode(world.entry))
  end

  it("tells of a call when its number is given away", function()
    call()
    assert.same({ { 1, world.entry.llm } }, told)
  end)

  it("tells of a call whose entry finds the queue full", function()
    conf = worlds.settings(1)
    call()
    assert.equal(1, told[1][1])
    assert.equal(1, world.queue_keeper.state().lost)
  end)

  it("tells nothing of a call that leaves no entry", function()
    call({ kept_out = true })
    assert.same({}, told)
  end)

  it("keeps an entry whose call could not be charged", function()
    call({ limited = { on_number = function()
      error("no")
    end } })
    assert.equal(1, world.queue_keeper.state().entries)
    assert.matches("a call was not charged", world.said[1])
  end)
end)
