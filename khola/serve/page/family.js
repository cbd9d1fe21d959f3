// Where the models of a family stand in its picture: generations from left to right, children under each other.

export const WIDTH = 284;
export const HEIGHT = 64;
const GAP_X = 70;
const GAP_Y = 14;

// The models of a family with everything they were made from, wherever that is from.
export function members(cards, family) {
  const byName = Object.fromEntries(cards.map((card) => [card.name, card]));
  const found = new Set(cards.filter((card) => card.family === family).map((card) => card.name));
  for (const name of found) for (const parent of byName[name].parents) if (byName[parent.name]) found.add(parent.name);
  return cards.filter((card) => found.has(card.name));
}

export function layout(cards) {
  const byName = new Map(cards.map((card) => [card.name, card]));
  const parents = (card) => card.parents.filter((parent) => byName.has(parent.name));
  const depth = new Map();
  const deep = (card, seen = new Set()) => {
    if (depth.has(card.name) || seen.has(card.name)) return depth.get(card.name) ?? 0;
    seen.add(card.name);
    const found = parents(card).map((parent) => 1 + deep(byName.get(parent.name), seen));
    depth.set(card.name, Math.max(0, ...found));
    return depth.get(card.name);
  };
  cards.forEach((card) => deep(card));
  const children = new Map(cards.map((card) => [card.name, []]));
  for (const card of cards) if (parents(card)[0]) children.get(parents(card)[0].name).push(card);
  const places = new Map();
  let row = 0;
  const place = (card) => {
    if (places.has(card.name)) return places.get(card.name).row;
    places.set(card.name, { row: -1, depth: depth.get(card.name), card });
    const rows = children.get(card.name).map(place).filter((found) => found >= 0);
    const own = rows.length ? (rows[0] + rows.at(-1)) / 2 : row++;
    places.get(card.name).row = own;
    return own;
  };
  const byDate = (a, b) => a.released.localeCompare(b.released);
  children.forEach((list) => list.sort(byDate));
  [...cards].filter((card) => !parents(card).length).sort(byDate).forEach(place);
  cards.forEach(place);
  const nodes = [...places.values()].map(({ row: at, depth: level, card }) => ({ card, x: level * (WIDTH + GAP_X), y: at * (HEIGHT + GAP_Y) }));
  const at = new Map(nodes.map((node) => [node.card.name, node]));
  const edges = nodes.flatMap((node) => parents(node.card).map((parent) => ({ from: at.get(parent.name), to: node, how: parent.how })));
  const width = Math.max(0, ...nodes.map((node) => node.x)) + WIDTH;
  const height = Math.max(0, ...nodes.map((node) => node.y)) + HEIGHT;
  return { nodes, edges, width, height };
}

// Everything made from a model.
export const offspring = (card, cards) => cards.filter((other) => other.parents.some((parent) => parent.name === card.name));
