// Two harmless tools that run in the page: the time, and arithmetic by a parser of its own.

export const TOOLS = [
  {
    type: "function",
    function: {
      name: "current_time",
      description: "The date and time where the user is.",
      parameters: { type: "object", properties: {}, required: [], additionalProperties: false },
    },
  },
  {
    type: "function",
    function: {
      name: "calculate",
      description: "The value of an arithmetic expression with + - * / ^ % and parentheses.",
      parameters: {
        type: "object",
        properties: { expression: { type: "string", description: "For instance (3 + 4) * 2^8" } },
        required: ["expression"],
        additionalProperties: false,
      },
    },
  },
];

export function run(name, given) {
  try {
    const values = JSON.parse(given || "{}");
    if (name === "current_time") return JSON.stringify({ time: new Date().toString() });
    if (name === "calculate") return JSON.stringify({ value: calculate(String(values.expression ?? "")) });
    return JSON.stringify({ error: `there is no tool ${name}` });
  } catch (error) {
    return JSON.stringify({ error: error.message });
  }
}

export function calculate(text) {
  const tokens = text.match(/\d+(?:\.\d+)?(?:e[+-]?\d+)?|[-+*/^%()]|\S/gi) ?? [];
  let place = 0;
  let depth = 0;
  const wrong = () => new Error(`cannot read the expression at ${tokens[place] ?? "its end"}`);

  function atom() {
    const token = tokens[place++];
    if (token === "-") return -power();
    if (token === "+") return power();
    if (token === "(" && ++depth < 100) {
      const inner = sum();
      if (tokens[place++] !== ")") throw wrong();
      return inner;
    }
    if (!/^\d/.test(token ?? "")) throw wrong();
    return Number(token);
  }
  function power() {
    const base = atom();
    if (tokens[place] !== "^") return base;
    place += 1;
    return base ** power();
  }
  function product() {
    let left = power();
    while (["*", "/", "%"].includes(tokens[place])) {
      const sign = tokens[place++];
      const right = power();
      left = sign === "*" ? left * right : sign === "/" ? left / right : left % right;
    }
    return left;
  }
  function sum() {
    let left = product();
    while (["+", "-"].includes(tokens[place])) left = tokens[place++] === "+" ? left + product() : left - product();
    return left;
  }
  const value = sum();
  if (place < tokens.length || !Number.isFinite(value)) throw wrong();
  return value;
}
