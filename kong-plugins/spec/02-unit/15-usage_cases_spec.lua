-- The table that the collector's reading of usage is tested with, too.

local capture = require "kong.plugins.llm-audit.capture"
local chunking = require "spec.helpers.chunking"
local cjson = require "cjson"
local fixtures = require "spec.helpers.fixtures"
local reported = require "kong.plugins.llm-audit.reported"


-- A value of the table, without what cjson has for null.
local function value_of(value)
  return value ~= cjson.null and value or nil
end


local function read(text, is_stream, size)
  local body = capture.new_ends(49152, 16384)
  for _, chunk in ipairs(chunking.split_every(text, size)) do
    body:put(chunk)
  end

  return reported.read(body, is_stream, true)
end


describe("reported, as the collector reads it", function()
  for _, case in ipairs(cjson.decode(fixtures.table_of_cases("usage"))) do
    local is_stream = case.name:find("^stream") ~= nil

    it(case.name, function()
      local found = read(case.text, is_stream, 1000)
      assert.same(value_of(case.reported), found.usage)
      assert.equal(value_of(case.model), found.model)
      if is_stream then
        assert.equal(case.ended, found.ended)
      end
    end)

    if is_stream then
      it(case.name .. ", behind a long answer", function()
        local filler = ('data: {"object":"x","model":"m","choices":[{"index":'
                        .. '0,"delta":{"content":"word "}}]}\n\n'):rep(1000)
        local first = case.text:find("\n\n", 1, true)
        if not first or case.api ~= "chat" then
          return
        end

        local text = case.text:sub(1, first + 1) .. filler
                     .. case.text:sub(first + 2)
        local found = read(text, true, 1000)
        assert.equal(value_of(case.model), found.model)
        -- counts in the first event have gone by
        if not case.text:sub(1, first):find('"usage":{"prompt', 1, true) then
          assert.same(value_of(case.reported), found.usage)
        end
      end)
    end
  end
end)
