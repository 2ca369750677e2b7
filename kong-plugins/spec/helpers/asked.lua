-- Reads requests as the plugin does, for specs.

local chunking = require "spec.helpers.chunking"
local request = require "llm_gateway.request"

local M = {}


-- @param size of the pieces in which the text comes
function M.read(text, size)
  local reader = request.new(true)
  for _, piece in ipairs(chunking.split_every(text, size or #text + 1)) do
    reader:feed(piece)
  end

  return reader:finish(#text)
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
