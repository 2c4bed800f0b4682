import { t } from "../i18n";
import { problem, unreachable } from "./problem";
import { me } from "./session";

export interface Person {
    user: string;
    name: string;
    /** Why nothing is known of this person but the address. */
    doubt?: string;
}

const address = /^@[^:\s]+:[^\s:]+(:\d+)?$/;

/** The full address in what somebody typed, who may write it like an e-mail address. */
export function addressIn(text: string): string | undefined {
    const typed = text.trim();
    if (address.test(typed)) return typed;
    const [, local, server] = /^@?([^@:\s]+)[@:]([^@\s]+\.[^@\s]+|localhost.*)$/.exec(typed) ?? [];
    const made = `@${local}:${server}`;
    return server && address.test(made) ? made : undefined;
}

export function serverOf(user: string): string {
    return user.slice(user.indexOf(":") + 1);
}

/** A name for somebody who has set none: the first part of the address. */
export function localpart(user: string): string {
    return /^@([^:]+):/.exec(user)?.[1] ?? user;
}

/** People of this company, and those one shares a conversation with, whose name or address fits. */
export async function searchPeople(term: string): Promise<Person[]> {
    const { results } = await me().searchUserDirectory({ term, limit: 10 });
    return results
        .filter((found) => found.user_id !== me().getUserId())
        .map((found) => ({ user: found.user_id, name: found.display_name || localpart(found.user_id) }));
}

/** Asks the server of an address who that is; undefined if it says that there is nobody. */
export async function lookUp(user: string): Promise<Person | undefined> {
    const server = serverOf(user);
    try {
        const profile = await me().getProfileInfo(user);
        return { user, name: profile.displayname || localpart(user) };
    } catch (error: any) {
        if (error.httpStatus === 404) return undefined;
        const person = { user, name: localpart(user) };
        if (error.httpStatus === 403) return { ...person, doubt: t("people.secret", { server }) };
        if (unreachable(error)) return { ...person, doubt: t("people.silent", { server }) };
        return { ...person, doubt: problem(error) };
    }
}

/** The conversation of two that one has with somebody already. */
export function conversationWith(user: string): string | undefined {
    const direct: Record<string, string[]> = me().getAccountData("m.direct" as any)?.getContent() ?? {};
    return direct[user]?.findLast((id) => {
        const room = me().getRoom(id);
        return room?.getMyMembership() === "join" && ["join", "invite"].includes(room.getMember(user)?.membership ?? "");
    });
}
