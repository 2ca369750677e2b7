local cjson = require "cjson"
local request = require "llm_gateway.request"


-- @param size of the pieces in which the text comes
local function read(text, size)
  local reader = request.new()
  reader:feed(text:sub(1, 4))
  for pos = 5, #text, size do
    reader:feed(text:sub(pos, pos + size - 1))
  end

  return reader:finish(#text)
end


local function changed(text, size, asks_usage)
  local reading = read(text, size)
  local changes = request.merge(reading.changes, asks_usage
                                and request.usage_changes(reading) or nil)
  for i = #(changes or {}), 1, -1 do
    local change = changes[i]
    text = text:sub(1, change.from - 1) .. change.text
           .. text:sub(change.to + 1)
  end

  return text
end


describe("request", function()
  it("takes out what no client may set, and nothing else", function()
    for text, expected in pairs({
      ['{"request_id":"a"}'] = "{}",
      ['{ "request_id" : "a" , "n":1}'] = '{  "n":1}',
      ['{"n":1,"request_id":"a"}'] = '{"n":1}',
      ['{"n":1 , "request_id":"a" }'] = '{"n":1  }',
      ['{"n":1,"request_id":"a","m":2}'] = '{"n":1,"m":2}',
      ['{"request_id":"a","kv_transfer_params":{"a":[1,{}]}}'] = "{}",
      ['{"request_id":"a","kv_transfer_params":null,"n":1}'] = '{"n":1}',
      ['{"request_id":1,"request_id":"b","n":1,"request_id":[]}'] = '{"n":1}',
      ['{"n":1,"kv_transfer_params":{"x":"}"},"request_id":"a,\\"","m":2}']
        = '{"n":1,"m":2}',
      ['{"r\\u0065quest_id":"a","n":1}'] = '{"n":1}',
      ['{"n":1,"\\u006bv_transfer_params":1.5e3}'] = '{"n":1}',
      ['{"n":{"request_id":"a"},"x":["request_id"]}']
        = '{"n":{"request_id":"a"},"x":["request_id"]}',
      ['{"Request_id":1,"request_ids":2," request_id":3}']
        = '{"Request_id":1,"request_ids":2," request_id":3}',
      ['\239\187\191{"request_id":"a","n":1}'] = '\239\187\191{"n":1}',
      -- for the server to refuse
      ['{"request_id":"a"'] = '{"request_id":"a"',
      ['{"n":1,"request_id":}'] = '{"n":1,"request_id":}',
    }) do
      for size = 1, #text do
        assert.equal(expected, changed(text, size), text .. " " .. size)
      end
    end
  end)

  it("does so together with what makes the server report usage", function()
    for _, text in ipairs({
      '{"request_id":"a","stream":true,"kv_transfer_params":{},"n":1}',
      '{"stream":true,"request_id":"a","stream_options":null}',
      '{"request_id":"a","stream_options":{"include_usage":false},'
        .. '"kv_transfer_params":{},"stream":true}',
    }) do
      for size = 1, #text do
        local result = cjson.decode(changed(text, size, true))
        assert.is_nil(result.request_id)
        assert.is_nil(result.kv_transfer_params)
        assert.is_true(result.stream)
        assert.is_true(result.stream_options.include_usage)
      end
    end
    assert.equal('{"stream":true}',
                 changed('{"request_id":"a","stream":true}', 9))
  end)

  it("says which response is to be continued", function()
    for text, id in pairs({
      ['{"previous_response_id":"resp_1"}'] = "resp_1",
      ['{"previous_response_id":"resp_1","previous\\u005fresponse_id":"r2"}']
        = "r2",
      ['{"previous_response_id":null}'] = false,
      ['{"previous_response_id":7}'] = false,
      ['{"input":{"previous_response_id":"resp_1"}}'] = false,
    }) do
      assert.equal(id, read(text, 3).previous_response_id or false)
    end
  end)
end)
