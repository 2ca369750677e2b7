--- Validates entities and plugin settings against schemas in Kong's notation.
--
-- A schema is a list of `{ name = { type = …, … } }`. From what Kong's schemas
-- can say this knows what the host's own and the project's plugins use: the types
-- string, number, integer, boolean, array, set, map, record, foreign, and the
-- rules below. Entity checks other than at_least_one_of and custom_entity_check
-- are not looked at. The words of the errors are Kong's, because people and
-- scripts read them.

local json = require "host.json"
local uuid = require "host.uuid"

local null = json.null

local schema = {}


-- --- rules of a value ------------------------------------------------------------

local TYPES = {
  string = function(value)
    return type(value) == "string", "expected a string"
  end,
  number = function(value)
    return type(value) == "number", "expected a number"
  end,
  integer = function(value)
    return type(value) == "number" and value % 1 == 0, "expected an integer"
  end,
  boolean = function(value)
    return type(value) == "boolean", "expected a boolean"
  end,
  array = function(value)
    return type(value) == "table" and (next(value) == nil or #value > 0), "expected an array"
  end,
  set = function(value)
    return type(value) == "table" and (next(value) == nil or #value > 0), "expected a set"
  end,
  map = function(value)
    return type(value) == "table", "expected a map"
  end,
  record = function(value)
    return type(value) == "table", "expected a record"
  end,
}


local function length(value)
  if type(value) == "string" or #value > 0 then
    return #value
  end
  local count = 0
  for _ in pairs(value) do
    count = count + 1
  end
  return count
end


-- Rule → function(value, argument): message when it is broken.
local RULES = {
  eq = function(value, expected)
    if value ~= expected then
      return "value must be " .. tostring(expected == null and "null" or expected)
    end
  end,
  gt = function(value, bound)
    if value <= bound then
      return "value must be greater than " .. bound
    end
  end,
  between = function(value, range)
    if value < range[1] or value > range[2] then
      return ("value should be between %d and %d"):format(range[1], range[2])
    end
  end,
  len_min = function(value, bound)
    if length(value) < bound then
      return "length must be at least " .. bound
    end
  end,
  len_max = function(value, bound)
    if length(value) > bound then
      return "length must be at most " .. bound
    end
  end,
  len_eq = function(value, bound)
    if length(value) ~= bound then
      return "length must be " .. bound
    end
  end,
  one_of = function(value, choices)
    for _, choice in ipairs(choices) do
      if value == choice then
        return nil
      end
    end
    return "expected one of: " .. table.concat(choices, ", ")
  end,
  match = function(value, pattern)
    if not value:match(pattern) then
      return "invalid value: " .. value
    end
  end,
  match_none = function(value, patterns)
    for _, item in ipairs(patterns) do
      if value:match(item.pattern) then
        return item.err
      end
    end
  end,
  match_any = function(value, any)
    for _, pattern in ipairs(any.patterns) do
      if value:match(pattern) then
        return nil
      end
    end
    return any.err
  end,
  starts_with = function(value, prefix)
    if value:sub(1, #prefix) ~= prefix then
      return "should start with: " .. prefix
    end
  end,
  uuid = function(value, wanted)
    if wanted and not uuid.is_valid(value) then
      return "expected a valid UUID"
    end
  end,
  custom_validator = function(value, validate)
    local ok, err = validate(value)
    if not ok then
      return err or "failed validating"
    end
  end,
}


-- --- from form fields --------------------------------------------------------------

-- A form knows only strings; the schema says what was meant.
local function infer(value, field)
  if type(value) ~= "string" then
    if (field.type == "array" or field.type == "set") and type(value) == "table" then
      local list = {}
      for i, item in ipairs(value) do
        list[i] = infer(item, field.elements)
      end
      return list
    end
    return value
  end
  if value == "" then
    return null
  elseif field.type == "number" or field.type == "integer" then
    return tonumber(value) or value
  elseif field.type == "boolean" then
    if value == "true" or value == "false" then
      return value == "true"
    end
  elseif field.type == "array" or field.type == "set" then
    local list = {}
    for item in value:gmatch("[^,]+") do
      list[#list + 1] = infer(item, field.elements)
    end
    return list
  end
  return value
end


-- --- validation ----------------------------------------------------------------------

local process

local function copy(value)
  if type(value) ~= "table" then
    return value
  end
  local result = setmetatable({}, getmetatable(value))
  for key, item in pairs(value) do
    result[key] = copy(item)
  end
  return result
end


local check_value

local function check_elements(list, field, from_form)
  local result, errors = json.array(), nil
  for i, item in ipairs(list) do
    local value, err = check_value(item, field.elements or {}, from_form)
    if err then
      errors = errors or {}
      errors[i] = err
    end
    result[i] = value
  end
  return result, errors
end


local function check_map(map, field, from_form)
  local result = {}
  for key, item in pairs(map) do
    local _, key_err = check_value(key, field.keys or {}, from_form)
    if key_err then
      return nil, key_err
    end
    local value, err = check_value(item, field.values or {}, from_form)
    if err then
      return nil, { [key] = err }
    end
    result[key] = value
  end
  return result
end


function check_value(value, field, from_form)
  if from_form then
    value = infer(value, field)
  end
  local type_check = TYPES[field.type]
  if type_check then
    local ok, err = type_check(value)
    if not ok then
      return nil, err
    end
  end

  local err
  if field.type == "record" then
    value, err = process(field.fields, value, from_form)
  elseif field.type == "array" or field.type == "set" then
    value, err = check_elements(value, field, from_form)
  elseif field.type == "map" then
    value, err = check_map(value, field, from_form)
  elseif field.type == "foreign" then
    if type(value) ~= "table" then
      err = "expected a record"
    end
  end
  if err then
    return nil, err
  end

  for name, rule in pairs(RULES) do
    if field[name] ~= nil then
      local message = rule(value, field[name])
      if message then
        return nil, message
      end
    end
  end
  return value
end


local function by_name(fields)
  local index = {}
  for _, item in ipairs(fields) do
    local name, field = next(item)
    index[name] = field
  end
  return index
end


--- The definition of a field; nil when there is none of that name.
function schema.field(fields, name)
  return by_name(fields)[name]
end


--- The value of a field that was not given.
local function default_of(field)
  if field.default ~= nil and field.default ~= null then
    local value = copy(field.default)
    if field.type == "array" or field.type == "set" then
      return json.array(value)
    end
    return value
  end
  -- A record shows the defaults of its fields even when it was left out.
  if field.type == "record" and field.fields then
    return (process(field.fields, {}))
  end
end


--- The input with defaults, without nulls; or nil and field → message.
function process(fields, input, from_form)
  local known = by_name(fields)
  local result, errors = {}, {}
  for name in pairs(input) do
    if not known[name] then
      errors[name] = "unknown field"
    end
  end
  for name, field in pairs(known) do
    local value = input[name]
    if value == nil then
      value = default_of(field)
      if value == nil and field.required and not field.auto then
        errors[name] = "required field missing"
      end
    elseif value == null then
      value = nil
      if field.required then
        errors[name] = "required field missing"
      end
    elseif field.eq == null then
      errors[name] = "value must be null"
    else
      local err
      value, err = check_value(value, field, from_form)
      errors[name] = err
    end
    result[name] = value
  end
  if next(errors) then
    return nil, errors
  end
  return result
end


-- --- checks over several fields ------------------------------------------------------

local function at(entity, path)
  for step in path:gmatch("[^.]+") do
    if type(entity) ~= "table" then
      return nil
    end
    entity = entity[step]
  end
  return entity
end


local function is_set(value)
  return value ~= nil and value ~= null and (type(value) ~= "table" or next(value) ~= nil)
end


local function check_entity(checks, entity)
  local messages = {}
  for _, check in ipairs(checks or {}) do
    if check.at_least_one_of then
      local found = false
      local quoted = {}
      for _, path in ipairs(check.at_least_one_of) do
        found = found or is_set(at(entity, path))
        quoted[#quoted + 1] = "'" .. path .. "'"
      end
      if not found then
        messages[#messages + 1] = "at least one of these fields must be non-empty: "
                                  .. table.concat(quoted, ", ")
      end
    elseif check.custom_entity_check then
      local ok, err = check.custom_entity_check.fn(entity)
      if not ok then
        messages[#messages + 1] = err or "entity check failed"
      end
    end
  end
  return #messages > 0 and { ["@entity"] = json.array(messages) } or nil
end


--- The entity as it will be stored; or nil and field → message.
function schema.validate(definition, input, from_form)
  local entity, errors = process(definition.fields, input, from_form)
  if not entity then
    return nil, errors
  end
  errors = check_entity(definition.entity_checks, entity)
  if errors then
    return nil, errors
  end
  return entity
end


-- --- showing ----------------------------------------------------------------------------

--- The entity as the Admin API shows it: every field, null where nothing is set,
--- lists as lists even when empty.
function schema.represent(definition, entity)
  local shown = {}
  for _, item in ipairs(definition.fields) do
    local name, field = next(item)
    local value = entity[name]
    if value == nil then
      value = null
    elseif field.type == "record" then
      value = schema.represent(field, value)
    elseif field.type == "array" or field.type == "set" then
      value = json.array(copy(value))
    end
    shown[name] = value
  end
  return shown
end


return schema
