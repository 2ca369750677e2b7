-- What the events of a stream add up to, read plainly: every event decoded, one
-- after the other. By the documentation of the APIs, not by the plugin's code.

local cjson = require "cjson"

local M = {}


local function append(to, key, text)
  if type(text) == "string" then
    to[key] = (to[key] or "") .. text
  end
end


local function add_delta(answer, choice, delta)
  local at = "choice " .. (choice.index or 0) .. " "

  for _, name in ipairs({ "content", "reasoning", "reasoning_content",
                          "refusal" }) do
    append(answer, at .. name, delta[name])
  end

  if type(delta.role) == "string" then
    answer[at .. "role"] = answer[at .. "role"] or delta.role
  end

  for _, call in ipairs(type(delta.tool_calls) == "table" and delta.tool_calls
                        or {}) do
    local place = at .. "call " .. (call.index or 0) .. " "
    if type(call.id) == "string" then
      answer[place .. "id"] = answer[place .. "id"] or call.id
    end
    local part = call["function"] or {}
    if type(part.name) == "string" then
      answer[place .. "name"] = answer[place .. "name"] or part.name
    end
    append(answer, place .. "arguments", part.arguments)
  end
end


local function add_choices(answer, event)
  for _, choice in ipairs(event.choices) do
    local at = "choice " .. (choice.index or 0) .. " "
    append(answer, at .. "text", choice.text)
    if type(choice.delta) == "table" then
      add_delta(answer, choice, choice.delta)
    end
    for _, name in ipairs({ "finish_reason", "stop_reason" }) do
      if choice[name] ~= nil and choice[name] ~= cjson.null then
        answer[at .. name] = choice[name]
      end
    end
  end
end


local function add_typed(answer, event)
  local kind = event.type
  local at = kind .. " " .. (event.output_index or event.index or 0) .. " "
             .. (event.content_index or event.summary_index or 0)

  if event.response and kind ~= "response.created"
    and kind ~= "response.in_progress"
  then
    answer.response = event.response
  elseif kind == "content_block_delta" then
    for name, value in pairs(event.delta) do
      if name ~= "type" then
        append(answer, at .. " " .. name, value)
      end
    end
  elseif kind:find("%.delta$") then
    append(answer, at, event.delta)
  elseif kind == "message_start" or kind == "message_delta"
    or kind:find("^content_block_st")
  then
    answer[at] = event
  end
end


-- A response that is there at the end counts alone, as what it is.
function M.read(stream)
  local answer = {}

  for line in stream:gmatch("[^\n]+") do
    local data = line:match("^data: ?(.*%S)%s*$")
    if data == "[DONE]" then
      answer.done = true
    elseif data then
      local event = cjson.decode(data)
      answer.id = answer.id or event.id
      answer.model = answer.model or event.model
      answer.created = answer.created or event.created
      if type(event.usage) == "table" then
        answer.usage = event.usage
      end
      answer.error = event.error or answer.error
      if event.choices then
        add_choices(answer, event)
      elseif event.type then
        add_typed(answer, event)
      end
    end
  end

  if answer.response then
    return { response = answer.response }
  end

  return answer
end


return M
