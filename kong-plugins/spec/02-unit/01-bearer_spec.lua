local here = debug.getinfo(1, "S").source:match("^@(.*)/[^/]*$")
local SNIPPET = here .. "/../../pre-function/bearer.lua"

-- What Kong's sandbox offers and the snippet may use; no require, no io.
local function sandbox(kong, over)
  local ngx = {
    shared = {
      llm_gateway = over and {
        get = function(_, key)
          return over[key]
        end,
      },
    },
    var = { remote_addr = "192.0.2.7" },
    now = function()
      return 1700000045.5
    end,
  }

  return { kong = kong, ngx = ngx, ipairs = ipairs, pairs = pairs, type = type,
           math = math, tostring = tostring }
end


-- Runs the snippet on a request, as nginx and Kong would show it.
-- @param headers values by lower case name: a string, or a list if repeated
-- @param over what llm-audit notes in the shared dict; nil: there is no dict
-- @return the headers that go on to key-auth and the model server, and what
-- the snippet answered, if it did
local function run(headers, over)
  local kong = {
    request = {
      get_headers = function(most)
        assert.equal(1000, most)
        local shown = {}
        for name, value in pairs(headers) do
          shown[name] = value
        end
        return shown
      end,
    },
    response = {
      exit = function(status, body, more)
        error({ status = status, body = body, headers = more })
      end,
    },
    service = {
      request = {
        set_header = function(name, value)
          headers[name:lower()] = value
        end,
        clear_header = function(name)
          headers[name:lower()] = nil
        end,
      },
    },
  }

  local chunk = assert(loadfile(SNIPPET))
  setfenv(chunk, sandbox(kong, over))
  local ok, result = pcall(chunk)
  if not ok then
    assert(type(result) == "table", result)
    return headers, result
  end
  assert.is_nil(result, "a result would be taken for the phase function")

  return headers
end


describe("bearer.lua", function()
  describe("takes the key and removes Authorization", function()
    for value, key in pairs({
      ["Bearer sk-1"] = "sk-1",
      ["bearer sk-1"] = "sk-1",
      ["BEARER sk-1"] = "sk-1",
      ["bEaReR sk-1"] = "sk-1",
      ["Bearer    sk-1"] = "sk-1",
      ["Bearer\tsk-1"] = "sk-1",
      ["  Bearer sk-1"] = "sk-1",
      ["Bearer sk-1  "] = "sk-1",
      [" \t Bearer \t sk-1 \t "] = "sk-1",
      -- only the leading scheme is stripped
      ["Bearer Bearer sk-1"] = "Bearer sk-1",
      ["Bearer sk-Bearer 1"] = "sk-Bearer 1",
      ["Bearer bearer"] = "bearer",
      -- a key that key-auth will refuse is still a key
      ["Bearer two words"] = "two words",
      ["Bearer sk%d+-."] = "sk%d+-.",
    }) do
      it(string.format("%q", value), function()
        local headers = run({ authorization = value })
        assert.equal(key, headers["x-api-key"])
        assert.is_nil(headers.authorization)
      end)
    end
  end)

  describe("leaves other schemes alone", function()
    for _, value in ipairs({
      "Basic dXNlcjpwYXNz",
      "Digest username=\"Bearer\"",
      "sk-1",
      "Bearersk-1",
      "Bearer:sk-1",
      "Basic Bearer sk-1",
      "XBearer sk-1",
      "Beare r sk-1",
    }) do
      it(string.format("%q", value), function()
        local headers = run({ authorization = value })
        assert.is_nil(headers["x-api-key"])
        assert.equal(value, headers.authorization)
      end)

      it(string.format("%q beside X-API-Key", value), function()
        local headers = run({ authorization = value, ["x-api-key"] = "sk-2" })
        assert.equal("sk-2", headers["x-api-key"])
        assert.equal(value, headers.authorization)
      end)
    end
  end)

  it("does nothing without Authorization", function()
    assert.same({}, run({}))
    assert.same({ ["x-api-key"] = "sk-2" }, run({ ["x-api-key"] = "sk-2" }))
  end)

  it("lets Bearer win over X-API-Key", function()
    local headers = run({
      authorization = "Bearer sk-1",
      ["x-api-key"] = "sk-2",
    })
    assert.same({ ["x-api-key"] = "sk-1" }, headers)

    -- key-auth refuses a repeated key; Bearer replaces both
    headers = run({
      authorization = "Bearer sk-1",
      ["x-api-key"] = { "sk-2", "sk-3" },
    })
    assert.same({ ["x-api-key"] = "sk-1" }, headers)
  end)

  it("takes no key from an empty Bearer and keeps X-API-Key", function()
    for _, value in ipairs({ "Bearer", "Bearer ", "bearer \t ", " Bearer" }) do
      assert.same({}, run({ authorization = value }))
      assert.same({ ["x-api-key"] = "sk-2" },
                  run({ authorization = value, ["x-api-key"] = "sk-2" }))
    end
  end)

  it("finds the key in a repeated Authorization header", function()
    for _, values in ipairs({
      { "Bearer sk-1", "Basic dXNlcjpwYXNz" },
      { "Basic dXNlcjpwYXNz", "Bearer sk-1" },
      { "Bearer ", "Bearer sk-1" },
      { "Bearer sk-1", "Bearer sk-9" },
      { "Basic dXNlcjpwYXNz", "Bearer ", "bearer sk-1" },
    }) do
      assert.same({ ["x-api-key"] = "sk-1" }, run({ authorization = values }))
    end
  end)

  it("sends no repeated header with a Bearer scheme on", function()
    assert.same({}, run({ authorization = { "Basic YTpi", "Bearer" } }))
  end)

  it("leaves a repeated header of other schemes alone", function()
    local headers = run({ authorization = { "Basic YTpi", "Digest x" } })
    assert.same({ "Basic YTpi", "Digest x" }, headers.authorization)
    assert.is_nil(headers["x-api-key"])
  end)

  it("reads a hostile header in one pass", function()
    local started = os.clock()
    for _, value in ipairs({
      ("\t "):rep(50000),
      "Bearer" .. (" "):rep(100000),
      "Bearer a" .. (" "):rep(100000) .. "b",
      "Bearer" .. (" "):rep(100000) .. "a" .. (" "):rep(100000),
    }) do
      run({ authorization = value })
    end
    assert.is_true(os.clock() - started < 1)
  end)

  describe("from an address with too many failed calls", function()
    local over = { ["over:192.0.2.7"] = true }

    it("refuses a call without a key until the minute is over", function()
      local _, answer = run({}, over)
      assert.equal(429, answer.status)
      -- 1700000045 is 5 seconds into a minute
      assert.equal("55", answer.headers["Retry-After"])
      assert.equal("false", answer.headers["X-Should-Retry"])
      _, answer = run({ authorization = "Basic dXNlcjpwYXNz" }, over)
      assert.equal(429, answer.status)
    end)

    it("leaves every key to key-auth", function()
      for _, headers in ipairs({
        { authorization = "Bearer sk-1" },
        { ["x-api-key"] = "sk-1" },
        { authorization = { "Basic dXNlcjpwYXNz", "Bearer sk-1" } },
      }) do
        local _, answer = run(headers, over)
        assert.is_nil(answer)
      end
    end)

    it("lets other addresses alone", function()
      local _, answer = run({}, { ["over:192.0.2.8"] = true })
      assert.is_nil(answer)
    end)
  end)

  describe("removes what a client may not say", function()
    for _, name in ipairs({
      "x-vllm-priority", "x-data-parallel-rank", "x-session-id",
      "x_vllm_priority", "x-data_parallel-rank", "x-consumer-id",
      "x-consumer-username", "x_consumer_username", "x-consumer-groups",
      "x-credential-identifier", "x-anonymous-consumer",
    }) do
      it(name, function()
        assert.same({ ["x-api-key"] = "sk-1", accept = "*/*" },
                    run({ authorization = "Bearer sk-1", [name] = "1",
                          accept = "*/*" }))
        assert.same({}, run({ [name] = { "1", "2" } }))
      end)
    end

    it("but nothing that only looks similar", function()
      for _, name in ipairs({ "x-consumer", "x-session", "x-session-id-2",
                              "my-x-consumer-id", "x-request-id" }) do
        assert.same({ [name] = "1" }, run({ [name] = "1" }), name)
      end
    end)

    it("and refuses a request that may hide it behind other headers", function()
      local headers = {}
      for i = 1, 999 do
        headers["a" .. i] = "1"
      end
      local function answer()
        return (select(2, run(headers)) or {}).status
      end
      assert.is_nil(answer())
      headers.b = "1"
      assert.equal(400, answer())
      headers.b = nil
      headers.a1 = { "1", "2" }
      assert.equal(400, answer())
    end)
  end)

  describe("refuses a key that no database can look up", function()
    for name, key in pairs({
      ["Latin-1"] = "sk-caf\233",
      ["a stray continuation byte"] = "sk-\128",
      ["a character that is cut"] = "sk-\228\184",
      ["an overlong slash"] = "\192\175",
      ["a surrogate"] = "\237\160\128",
      ["beyond Unicode"] = "\244\144\128\128",
      ["halves around a character"] = "\240\228\184\173\159\152\128",
      ["a control character"] = "sk\1",
      ["very long"] = ("k"):rep(1025),
    }) do
      it(name, function()
        for _, headers in ipairs({
          { authorization = "Bearer " .. key }, { ["x-api-key"] = key },
          { ["x-api-key"] = { "sk-1", key } },
        }) do
          local _, answer = run(headers)
          assert.equal(401, answer.status)
          assert.equal("Unauthorized", answer.body.message)
          assert.equal("Key", answer.headers["WWW-Authenticate"])
          assert.is_nil(headers.authorization)
        end
      end)
    end

    it("and no other", function()
      for _, key in ipairs({ "sk-1", "ключ", "钥匙", "\240\159\152\128",
                             ("k"):rep(1024), "a b" }) do
        assert.same({ ["x-api-key"] = key }, run({ ["x-api-key"] = key }))
        assert.same({ ["x-api-key"] = key },
                    run({ authorization = "Bearer " .. key }))
      end
    end)
  end)
end)
