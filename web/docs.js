// Shows openapi.json: each route with what it takes and what it answers. All of it is put in as text.

const METHODS = ["get", "put", "post", "delete"];

const find = (id) => document.getElementById(id);

function element(name, attributes = {}, ...children) {
  const made = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  made.append(...children);
  return made;
}

// What a reference of the document stands for.
function resolved(found, all) {
  if (found?.$ref === undefined) return found;
  return found.$ref.slice(2).split("/").reduce((inner, name) => inner?.[name], all);
}

// A schema in a few words: the names of an object's members, `?` behind those that may be missing.
function shape(schema, all, depth = 0) {
  const found = resolved(schema, all) ?? {};
  if (found.enum) return found.enum.map((value) => JSON.stringify(value)).join(" | ");
  if (found.const !== undefined) return JSON.stringify(found.const);
  if (found.allOf) {
    const parts = found.allOf.map((part) => resolved(part, all));
    const properties = Object.assign({}, ...parts.map((part) => part.properties));
    return shape({ properties, required: parts.flatMap((part) => part.required ?? []) }, all, depth);
  }
  const several = found.oneOf ?? found.anyOf;
  if (several) return several.map((one) => shape(one, all, depth)).join(" | ");
  if (found.type === "array") return `[${shape(found.items, all, depth)}]`;
  if (found.properties && depth < 2) {
    const required = new Set(found.required ?? []);
    const members = Object.entries(found.properties).map(
      ([name, inner]) => `${name}${required.has(name) ? "" : "?"}: ${shape(inner, all, depth + 1)}`,
    );
    return `{ ${members.join(", ")} }`;
  }
  return [found.type ?? "anything"].flat().join(" | ");
}

function contents(content, all) {
  return Object.entries(content ?? {}).map(([type, { schema }]) => {
    const described = type.includes("json") ? `${type}: ${shape(schema, all)}` : type;
    return element("pre", {}, described);
  });
}

function row(name, ...told) {
  return element("tr", {}, element("th", { scope: "row" }, name), element("td", {}, ...told));
}

function operation(method, path, described, shared, all) {
  const rows = [];
  for (const given of [...(shared ?? []), ...(described.parameters ?? [])]) {
    const parameter = resolved(given, all);
    const need = parameter.required ? "" : ", optional";
    rows.push(row(`${parameter.name} (${parameter.in}${need})`, parameter.description ?? ""));
  }
  const body = resolved(described.requestBody, all);
  if (body) rows.push(row("body", body.description ?? "", ...contents(body.content, all)));
  for (const [status, given] of Object.entries(described.responses)) {
    const answer = resolved(given, all);
    rows.push(row(status, answer.description, ...contents(answer.content, all)));
  }
  const title = element("h2", {}, element("span", { class: "method" }, method.toUpperCase()), ` ${path}`);
  const about = [described.summary, described.description].filter(Boolean).join(". ");
  const table = element("table", {}, element("tbody", {}, ...rows));
  return element("section", { id: `${method}${path}` }, title, element("p", {}, about), table);
}

async function show() {
  const answer = await fetch("openapi.json", { cache: "no-cache" });
  // Without a session the server shows the form for a key in this page's place.
  if (answer.status === 401) return location.reload();
  const all = await answer.json();
  find("version").textContent = `OpenAPI ${all.openapi}`;
  find("about").textContent = all.info.description;
  for (const [path, described] of Object.entries(all.paths)) {
    for (const method of METHODS.filter((method) => described[method])) {
      find("routes").append(operation(method, path, described[method], described.parameters, all));
    }
  }
}

show().catch((error) => {
  find("about").textContent = `openapi.json cannot be read: ${error}`;
});
