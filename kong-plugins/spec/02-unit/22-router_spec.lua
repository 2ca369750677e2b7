local cjson = require "cjson"
local router = require "spec.helpers.router"

local MODELS = {
  { name = "small", aliases = { "default" }, upstream = "llm-small",
    teams = {}, users = {} },
  { name = "Qwen/Qwen3-8B", aliases = {}, upstream = "llm-big",
    served_as = "qwen/tiny", teams = { "ml" }, users = {}, key = "sk-server" },
  { name = "lost", aliases = {}, upstream = "llm-lost", teams = {},
    users = {} },
}

local BOB = { id = "b", username = "bob" }
local ML = { id = "m", username = "mila", tags = { "team:ml" } }


describe("llm-router", function()
  local running
  before_each(function()
    running = router.new(MODELS, { ["llm-small"] = true, ["llm-big"] = true })
  end)

  local function chat(body, consumer, changes)
    local request = { path = "/v1/chat/completions", body = body,
                      consumer = consumer or BOB }
    for name, value in pairs(changes or {}) do
      request[name] = value
    end

    return running:call(request)
  end

  local function error_of(result, status)
    assert.equal(status, result.exit.status)
    assert.equal("router", result.asked.refused_by)
    assert.is_nil(result.upstream)

    return cjson.decode(result.exit.body)
  end

  it("does nothing without models", function()
    for _, list in ipairs({ {}, false }) do
      running = router.new(list or nil, {})
      local result = chat('{"model":"small"}')
      assert.is_nil(result.asked)
      assert.is_nil(result.upstream)
      assert.same({}, result.headers)
    end
  end)

  it("leads a call to the upstream of its model", function()
    local result = chat('{"model":"small"}')
    assert.equal("llm-small", result.upstream)
    assert.equal(2, result.retries)
    assert.equal('{"model":"small"}', result.body)
    assert.same({ ["X-Request-Id"] = "f00d" }, result.headers)

    result = chat('{"model":"Qwen/Qwen3-8B"}', ML)
    assert.equal("llm-big", result.upstream)
    assert.equal("Bearer sk-server", result.headers.Authorization)
  end)

  it("says the same of a forbidden model as of none", function()
    local forbidden = error_of(chat('{"model":"Qwen/Qwen3-8B"}'), 404)
    local unknown = error_of(chat('{"model":"Qwen/Qwen3-8C"}'), 404)
    assert.equal("model_not_found", forbidden.error.code)
    assert.equal("invalid_request_error", forbidden.error.type)
    forbidden.error.message = forbidden.error.message:gsub("8B", "8C")
    assert.same(unknown, forbidden)
  end)

  it("answers Anthropic's paths in Anthropic's shape", function()
    for _, path in ipairs({ "/v1/messages", "/v1/messages/count_tokens" }) do
      local err = error_of(chat('{"model":"nope"}', BOB, { path = path }), 404)
      assert.equal("error", err.type)
      assert.equal("not_found_error", err.error.type)
      assert.equal("f00d", err.request_id)
    end
  end)

  it("rewrites the model in the text, and nothing else", function()
    for body, expected in pairs({
      ['{ "n":1, "model" : "default" ,"a":"default"}'] =
        '{ "n":1, "model" : "small" ,"a":"default"}',
      ['{"m\\u006fdel":"def\\u0061ult"}'] = '{"m\\u006fdel":"small"}',
      -- a server that goes by the first of them finds no other
      ['{"model":"secret","model":3,"x":{"model":"default"},'
        .. '"model":"default"}'] =
        '{"model":"small","model":"small","x":{"model":"default"},'
        .. '"model":"small"}',
      ['{"model":"secret","model":"small"}'] =
        '{"model":"small","model":"small"}',
      ['\239\187\191{"model":"default"}'] = '\239\187\191{"model":"small"}',
      ['{"request_id":"x","model":"default"}'] =
        '{"request_id":"x","model":"small"}',
      -- as it is where it says the same
      ['{"model":"sm\\u0061ll"}'] = '{"model":"sm\\u0061ll"}',
    }) do
      local result = chat(body)
      assert.equal("llm-small", result.upstream)
      assert.equal(expected, result.body)
    end
    assert.equal('{"model":"qwen/tiny"}',
                 chat('{"model":"Qwen\\/Qwen3-8B"}', ML).body)
  end)

  it("goes by the last of repeated models", function()
    error_of(chat('{"model":"small","model":"Qwen/Qwen3-8B"}'), 404)
    error_of(chat('{"model":"small","\\u006dodel":"Qwen/Qwen3-8B"}'), 404)
    error_of(chat('{"x":[{"model":"small"}],"model":"nope"}'), 404)
  end)

  it("wants a model where one is needed", function()
    for _, body in ipairs({ "{}", '{"model":null}', '{"model":""}',
                            '{"messages":[{"model":"small"}]}' }) do
      local err = error_of(chat(body), 400)
      assert.matches("You must provide a model", err.error.message)
    end
    for _, body in ipairs({ '{"model":3}', '{"model":["small"]}',
                            '{"model":{"a":"small"}}', '{"model":true}' }) do
      assert.matches("must be a string",
                     error_of(chat(body), 400).error.message)
    end
  end)

  it("finds nothing under names that nobody can have", function()
    for _, name in ipairs({ ("x"):rep(5000), ("x"):rep(201), "sm\\ud800all",
                            "small\\u0000", "smal\\x", "sm\\u00e4ll",
                            "small\255", "\\u0007" }) do
      local body = error_of(chat('{"model":"' .. name .. '"}'), 404).error
      assert.matches("^The model .*does not exist", body.message)
      assert.is_true(#body.message < 300)
      assert.is_nil(body.message:find("[^\32-\126]"))
    end
  end)

  it("refuses what could be read in two ways, strict or not", function()
    for _, request in ipairs({
      { body = '{"model":"small"} x' },
      { body = '{"model":"small"}{"model":"lost"}' },
      { body = ('{"model":"small"}'):gsub(".", "%0\0") },
      { body = '{"model":"small","a":' .. ("["):rep(1000) },
      { body = '{"model":"small",' .. ('"a":1,'):rep(5000) .. '"b":2}' },
      { body = '{"model":"small"' },
      { body = '["model"]' },
      { body = "model=small" },
      { body = "" },
      { body = '{"model":"small"}',
        headers = { ["Content-Encoding"] = "gzip" } },
    }) do
      local err = error_of(chat(request.body, BOB, request), 400)
      assert.equal("invalid_request_error", err.error.type)
    end
  end)

  it("reads a body of which HTTP/2 says nothing before it comes", function()
    local hidden = { http_version = 2, hides_length = true }
    assert.equal("llm-small", chat('{"model":"small"}', BOB, hidden).upstream)
    error_of(chat('{"model":"nobody"}', BOB, hidden), 404)
  end)

  it("waits for no body for ever", function()
    local late = chat('{"model":"small"}', BOB, { never_comes = true })
    -- llm-audit makes it 408
    local err = error_of(late, 400)
    assert.is_true(late.asked.is_late)
    assert.matches("did not arrive in time", err.error.message)
    assert.same({ 60 }, { math.floor(ngx.thread.sleeps[1]) })

    -- llm-audit says how long, when it is configured
    package.loaded["llm_gateway.request_body"].set_seconds(5)
    chat('{"model":"small"}', BOB, { never_comes = true })
    assert.equal(5, math.floor(ngx.thread.sleeps[2]))
  end)

  it("reads the model of a form", function()
    local function body(fields)
      local parts = {}
      for _, field in ipairs(fields) do
        parts[#parts + 1] = "--b\r\nContent-Disposition: form-data; name="
                            .. field[1] .. "\r\n\r\n" .. field[2] .. "\r\n"
      end

      return table.concat(parts) .. "--b--\r\n"
    end
    local form = {
      path = "/v1/audio/transcriptions",
      headers = { ["Content-Type"] = "multipart/form-data; boundary=b" },
    }
    local FILE = { '"file"; filename="model"', ("\r\n--"):rep(9) }

    local result = chat(body({ FILE, { '"model"', "default" } }), BOB, form)
    assert.equal("llm-small", result.upstream)
    assert.equal(body({ FILE, { '"model"', "small" } }), result.body)
    local same = body({ { '"model"', "small" }, FILE })
    assert.equal(same, chat(same, BOB, form).body)

    error_of(chat(body({ { '"model"', "Qwen/Qwen3-8B" } }), BOB, form), 404)
    error_of(chat(body({ { '"model"', "small" }, { '"model"', "small" } }),
                  BOB, form), 400)
    error_of(chat(body({ { '"model"', ("x"):rep(300) } }), BOB, form), 404)
    for _, text in ipairs({ body({ FILE }), body({ { '"model"', "" } }),
                            "", '{"model":"small"}', "--b\r\n" }) do
      error_of(chat(text, BOB, form), 400)
    end
    form.headers = nil
    error_of(chat('{"model":"small"}', BOB, form), 400)
    form.headers = { ["Content-Type"] = "application/x-www-form-urlencoded" }
    error_of(chat("model=small", BOB, form), 400)
  end)

  it("reads a large body in pieces", function()
    local text = ("x"):rep(8 * 1048576)
    for _, in_file in ipairs({ false, true }) do
      local result = chat('{"a":"' .. text .. '","model":"default"}', BOB,
                          { in_file = in_file })
      assert.equal("llm-small", result.upstream)
      assert.equal('{"a":"' .. text .. '","model":"small"}', result.body)
    end
  end)

  it("lets paths alone that need no model", function()
    for _, request in ipairs({
      { method = "GET", path = "/v1/responses/resp_1" },
      { method = "GET", path = "/health" },
      { path = "/pause", body = "" },
      { path = "/pause", body = "x",
        headers = { ["Content-Type"] = "text/plain" } },
      { path = "/v1/load_lora_adapter", body = '{"lora_name":"a"}' },
      { path = "/pause", body = "[]" },
    }) do
      request.consumer = BOB
      local result = running:call(request)
      assert.is_nil(result.exit)
      assert.is_nil(result.upstream)
      assert.equal(request.body, result.body)
    end
    -- but goes by one that is there
    error_of(chat('{"model":"Qwen/Qwen3-8B"}', BOB, { path = "/invocations" }),
             404)
    assert.equal("llm-small",
                 chat('{"model":"small"}', BOB, { path = "/x" }).upstream)
  end)

  it("leads calls for a stored response to the server that made it", function()
    local servers = require "llm_gateway.response_servers"
    servers.note("resp_1", "10.0.0.1:8000", "Qwen/Qwen3-8B")

    local function get(path, consumer, changes)
      local request = { method = "GET", path = path, consumer = consumer }
      for name, value in pairs(changes or {}) do
        request[name] = value
      end
      return running:call(request)
    end

    for path, method in pairs({ ["/v1/responses/resp_1"] = "GET",
                                ["/v1/responses/resp_1/cancel"] = "POST" }) do
      local result = get(path, ML, { method = method })
      assert.equal("10.0.0.1:8000", result.target)
      assert.equal("Bearer sk-server", result.headers.Authorization)
      -- who may not use the model gets nothing of its server
      result = get(path, BOB, { method = method })
      assert.is_nil(result.target or result.exit)
      assert.is_nil(result.headers.Authorization)
    end
    assert.is_nil(get("/v1/responses/resp_2", ML).target)

    local function continued(model, id, consumer)
      return chat('{"model":"' .. model .. '","previous_response_id":"' .. id
                  .. '"}', consumer, { path = "/v1/responses" })
    end
    assert.equal("10.0.0.1:8000",
                 continued("Qwen/Qwen3-8B", "resp_1", ML).target)
    assert.equal("llm-big", continued("Qwen/Qwen3-8B", "resp_2", ML).upstream)
    -- another model is on another server
    assert.equal("llm-small", continued("small", "resp_1", ML).upstream)
    error_of(continued("Qwen/Qwen3-8B", "resp_1", BOB), 404)
  end)

  it("remembers the servers of the latest responses only", function()
    local servers = require "llm_gateway.response_servers"
    for i = 1, 20001 do
      servers.note("resp_" .. i, "10.0.0.1:" .. i, "m " .. i)
    end
    assert.is_nil(servers.of("resp_1"))
    assert.same({ "10.0.0.1:2", "m 2" }, { servers.of("resp_2") })
    assert.same({ "10.0.0.1:20001", "m 20001" }, { servers.of("resp_20001") })
    servers.note(("x"):rep(129), "10.0.0.1:1", "m")
    assert.is_nil(servers.of(("x"):rep(129)))
    assert.is_nil(servers.of(nil))
  end)

  it("answers 503 where the upstream is not there", function()
    local err = error_of(chat('{"model":"lost"}'), 503)
    assert.equal("server_error", err.error.type)
    assert.matches("model 'lost'.*llm%-lost", running.errors[1])
    -- Every other call for it within a minute says the same.
    for _ = 1, 3 do
      error_of(chat('{"model":"lost"}'), 503)
    end
    assert.equal(1, #running.errors)
  end)

  describe("the list of models", function()
    local function get(path, consumer, headers, method)
      return running:call({ method = method or "GET", path = path,
                            consumer = consumer, headers = headers }).exit
    end

    it("has those of the caller", function()
      for consumer, expected in pairs({
        [BOB] = { "small", "lost" },
        [ML] = { "small", "Qwen/Qwen3-8B", "lost" },
      }) do
        local exit = get("/v1/models", consumer)
        assert.equal(200, exit.status)
        assert.equal("application/json", exit.headers["Content-Type"])
        local list = cjson.decode(exit.body)
        assert.equal("list", list.object)
        local ids = {}
        for i, model in ipairs(list.data) do
          ids[i] = model.id
          assert.equal("model", model.object)
          assert.equal(0, model.created)
          assert.equal("gateway", model.owned_by)
        end
        assert.same(expected, ids)
      end
      assert.equal(200, get("/v1/models", BOB, nil, "HEAD").status)
    end)

    it("is a list also when it is empty", function()
      running = router.new({ { name = "a", upstream = "u", users = { "x" } } },
                           {})
      assert.equal('{"object":"list","data":[]}', get("/v1/models", BOB).body)
      assert.equal('{"data":[],"has_more":false,"first_id":null,'
                   .. '"last_id":null}',
                   get("/v1/models", BOB, { ["anthropic-version"] = "1" }).body)
    end)

    it("has Anthropic's shape for Anthropic's SDK", function()
      local headers = { ["anthropic-version"] = "2023-06-01" }
      local list = cjson.decode(get("/v1/models", BOB, headers).body)
      assert.equal(2, #list.data)
      assert.equal("model", list.data[1].type)
      assert.equal("small", list.data[1].display_name)
      assert.is_false(list.has_more)
      assert.equal("small", list.first_id)
      assert.equal("lost", list.last_id)

      local model = cjson.decode(get("/v1/models/default", BOB, headers).body)
      assert.equal("small", model.id)
      local err = cjson.decode(get("/v1/models/x", BOB, headers).body)
      assert.equal("not_found_error", err.error.type)
    end)

    it("tells of one, whose name may have slashes", function()
      for _, path in ipairs({ "/v1/models/Qwen/Qwen3-8B",
                              "/v1/models/Qwen%2FQwen3-8B",
                              "/v1/models/%51wen/Qwen3-8B" }) do
        local model = cjson.decode(get(path, ML).body)
        assert.equal("Qwen/Qwen3-8B", model.id)
        local exit = get(path, BOB)
        assert.equal(404, exit.status)
        assert.equal("model_not_found", cjson.decode(exit.body).error.code)
      end
      assert.equal(404, get("/v1/models/Qwen%252FQwen3-8B", ML).status)
      assert.equal(404, get("/v1/models/%00%ff", ML).status)
    end)

    it("can only be read", function()
      for _, method in ipairs({ "POST", "DELETE", "PUT" }) do
        local exit = get("/v1/models/small", BOB, nil, method)
        assert.equal(405, exit.status)
        assert.equal("GET, HEAD", exit.headers.Allow)
      end
    end)
  end)
end)
