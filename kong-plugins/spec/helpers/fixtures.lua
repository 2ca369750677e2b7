-- The recorded vLLM exchanges of tests/fixtures/vllm.

local M = {}

local here = debug.getinfo(1, "S").source:match("^@(.*)/[^/]*$")
local root = here .. "/../../../tests/fixtures/vllm"


local function read(path)
  local file = io.open(path, "rb")
  if not file then
    return nil
  end

  local content = file:read("*a")
  file:close()

  return content
end


function M.response(name)
  return assert(read(root .. "/" .. name .. "/response.bin"), name)
end


function M.request(name)
  return assert(read(root .. "/" .. name .. "/request.json"), name)
end


-- The response as the client of the recording got it, one HTTP chunk each.
function M.chunks(name)
  local cjson = require "cjson"
  local recorded = cjson.decode(read(root .. "/" .. name .. "/chunks.json"))
  local body = M.response(name)
  local chunks = {}
  local pos = 1

  for _, chunk in ipairs(recorded.http_chunks) do
    local length = chunk[2]
    if length > 0 then
      chunks[#chunks + 1] = body:sub(pos, pos + length - 1)
      pos = pos + length
    end
  end

  assert(pos == #body + 1, name .. ": chunks do not add up")

  return chunks
end


function M.names()
  local names = {}
  local listing = assert(io.popen("ls '" .. root .. "'"))
  for name in listing:lines() do
    names[#names + 1] = name
  end
  listing:close()
  assert(#names > 100, "no fixtures in " .. root)

  return names
end


-- A table of cases that the collector is tested with, too.
function M.table_of_cases(name)
  return (assert(read(root .. "/../" .. name .. ".json"), name))
end


-- Names of the exchanges whose response is an event stream.
function M.streams()
  local streams = {}
  for _, name in ipairs(M.names()) do
    local body = read(root .. "/" .. name .. "/response.bin")
    if body and (body:find("data:", 1, true) == 1
                 or body:find("event:", 1, true) == 1) then
      streams[#streams + 1] = name
    end
  end
  assert(#streams > 20)

  return streams
end


return M
