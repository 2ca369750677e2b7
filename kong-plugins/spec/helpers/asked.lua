-- Reads requests as the plugin does, for specs.

local chunking = require "spec.helpers.chunking"
local request = require "llm_gateway.request"

local M = {}


-- @param pieces of a text
function M.read_pieces(pieces)
  local reader = request.new()
  local size = 0
  for _, piece in ipairs(pieces) do
    reader:feed(piece)
    size = size + #piece
  end

  local reading = reader:finish(size)
  local usage = request.usage_changes(reading)
  reading.asks_usage = usage ~= nil
  reading.changes = request.merge(reading.changes, usage)

  return reading
end


-- @param size of the pieces in which the text comes
function M.read(text, size)
  return M.read_pieces(chunking.split_every(text, size or #text + 1))
end


-- @return the text with the changes that the reading wants
function M.apply(text, changes)
  for i = #changes, 1, -1 do
    local change = changes[i]
    text = text:sub(1, change.from - 1) .. change.text
           .. text:sub(change.to + 1)
  end

  return text
end


return M
