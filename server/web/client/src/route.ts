import { signal } from "@preact/signals";

/** What is shown beside the list. */
export type Route =
    | { page: "none" | "inbox" | "search" | "settings" | "new" }
    | { page: "room"; room: string; event?: string };

function read(): Route {
    const [page, first, second] = location.hash.replace(/^#\/?/, "").split("/").map(decodeURIComponent);
    if (page === "room" && first) return { page, room: first, event: second };
    if (page === "inbox" || page === "search" || page === "settings" || page === "new") return { page };
    return { page: "none" };
}

export const route = signal<Route>(read());
window.addEventListener("hashchange", () => (route.value = read()));

/** The address of a page, for links. */
export function href(r: Route): string {
    if (r.page === "none") return "#/";
    if (r.page !== "room") return `#/${r.page}`;
    return `#/room/${encodeURIComponent(r.room)}${r.event ? `/${encodeURIComponent(r.event)}` : ""}`;
}

export function go(r: Route): void {
    location.hash = href(r);
}
