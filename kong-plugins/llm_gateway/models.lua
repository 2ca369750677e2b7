-- The models that a gateway knows, and who may use which.
--
-- A model that a caller may not use is, for that caller, one that does not
-- exist: M.find says the same of both, so that nobody can find out which names
-- there are.
--
-- Pure: tables only.

local ipairs = ipairs
local match = string.match
local next = next
local pairs = pairs
local type = type

local M = {}


local function set_of(list)
  local set = {}
  for _, item in ipairs(list or {}) do
    set[item] = true
  end

  return set
end


-- @param models as in the plugin's configuration
-- @return index: `list` in the order of the configuration, `by_name` also by
-- their aliases. Each has name, upstream, served_as (what its server calls it),
-- and `settings`, the record it was made of
function M.index(models)
  local index = { list = {}, by_name = {} }

  for i, settings in ipairs(models) do
    local model = {
      name = settings.name,
      upstream = settings.upstream,
      served_as = settings.served_as or settings.name,
      users = set_of(settings.users),
      teams = set_of(settings.teams),
      settings = settings,
    }
    model.is_open = not next(model.users) and not next(model.teams)

    index.list[i] = model
    index.by_name[settings.name] = model
    for _, alias in ipairs(settings.aliases or {}) do
      index.by_name[alias] = model
    end
  end

  return index
end


-- @return what is wrong with the names of these models; nil if nothing is
function M.fault(models)
  local seen = {}

  for _, settings in ipairs(models) do
    local names = { settings.name }
    for _, alias in ipairs(type(settings.aliases) == "table"
                           and settings.aliases or {}) do
      names[#names + 1] = alias
    end

    for _, name in pairs(names) do
      if seen[name] then
        return "two models have the name or alias '" .. name .. "'"
      end
      seen[name] = true
    end
  end

  return nil
end


-- @param consumer as Kong has it; nil for nobody
-- @return what decides over the caller's models
function M.caller(consumer)
  local caller = { teams = {} }
  if not consumer then
    return caller
  end

  caller.user = type(consumer.username) == "string" and consumer.username
                or consumer.custom_id
  local tags = type(consumer.tags) == "table" and consumer.tags or {}
  for _, tag in ipairs(tags) do
    local team = match(tag, "^team:(.+)$")
    if team then
      caller.teams[team] = true
    end
  end

  return caller
end


local function may_use(model, caller)
  if model.is_open or caller.user and model.users[caller.user] then
    return true
  end

  for team in pairs(caller.teams) do
    if model.teams[team] then
      return true
    end
  end

  return false
end


-- @return the model of that name or alias, nil when there is none for this
-- caller
function M.find(index, name, caller)
  local model = index.by_name[name]

  return model and may_use(model, caller) and model or nil
end


-- @return all models of this caller, in the order of the configuration
function M.all(index, caller)
  local mine = {}
  for _, model in ipairs(index.list) do
    if may_use(model, caller) then
      mine[#mine + 1] = model
    end
  end

  return mine
end


return M
