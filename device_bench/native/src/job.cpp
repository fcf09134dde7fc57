#include "job.hpp"

#include <algorithm>
#include <cctype>
#include <cstdio>
#include <stdexcept>

namespace edgefold {

namespace {

class Parser {
  public:
    explicit Parser(const std::string &text) : text_(text) {}

    bool take(char wanted) {
        skip();
        if (at_ >= text_.size() || text_[at_] != wanted)
            return false;
        ++at_;
        return true;
    }

    void expect(char wanted) {
        if (!take(wanted))
            throw std::runtime_error(std::string("the job is not the JSON that was expected: no ") + wanted + " at byte " +
                                     std::to_string(at_));
    }

    std::string string() {
        expect('"');
        std::string result;
        while (at_ < text_.size() && text_[at_] != '"') {
            char c = text_[at_++];
            if (c != '\\') {
                result += c;
                continue;
            }
            char escaped = at_ < text_.size() ? text_[at_++] : '\\';
            switch (escaped) {
            case 'n': result += '\n'; break;
            case 't': result += '\t'; break;
            case 'u':
                // Only names that the user sees have other letters; no path of ours does.
                at_ = std::min(at_ + 4, text_.size());
                result += '?';
                break;
            default: result += escaped;
            }
        }
        expect('"');
        return result;
    }

    std::string word() {
        skip();
        if (at_ < text_.size() && text_[at_] == '"')
            return string();
        std::size_t start = at_;
        while (at_ < text_.size() && (std::isalnum(static_cast<unsigned char>(text_[at_])) || strchr_(text_[at_])))
            ++at_;
        if (start == at_)
            throw std::runtime_error("the job holds something unexpected at byte " + std::to_string(at_));
        return text_.substr(start, at_ - start);
    }

  private:
    static bool strchr_(char c) { return c == '-' || c == '+' || c == '.'; }

    void skip() {
        while (at_ < text_.size() && std::isspace(static_cast<unsigned char>(text_[at_])))
            ++at_;
    }

    const std::string &text_;
    std::size_t at_ = 0;
};

} // namespace

Job::Job(const std::string &json) {
    Parser parser(json);
    parser.expect('{');
    while (!parser.take('}')) {
        std::string key = parser.string();
        parser.expect(':');
        std::vector<std::string> words;
        if (parser.take('[')) {
            while (!parser.take(']')) {
                words.push_back(parser.word());
                parser.take(',');
            }
        } else {
            words.push_back(parser.word());
        }
        values_[key] = words;
        parser.take(',');
    }
}

std::string Job::text(const std::string &key) const {
    auto found = values_.find(key);
    if (found == values_.end() || found->second.size() != 1)
        throw std::runtime_error("the job has no " + key);
    return found->second[0];
}

double Job::number(const std::string &key, double otherwise) const {
    auto found = values_.find(key);
    return found == values_.end() || found->second.empty() ? otherwise : std::stod(found->second[0]);
}

std::vector<std::string> Job::texts(const std::string &key) const {
    auto found = values_.find(key);
    return found == values_.end() ? std::vector<std::string>() : found->second;
}

std::vector<int> Job::numbers(const std::string &key) const {
    std::vector<int> result;
    for (const std::string &word : texts(key))
        result.push_back(std::stoi(word));
    return result;
}

std::string quoted(const std::string &text) {
    std::string result = "\"";
    for (unsigned char c : text) {
        if (c == '"' || c == '\\') {
            result += '\\';
            result += static_cast<char>(c);
        } else if (c < 0x20) {
            char code[8];
            std::snprintf(code, sizeof code, "\\u%04x", c);
            result += code;
        } else {
            result += static_cast<char>(c);
        }
    }
    return result + '"';
}

} // namespace edgefold
