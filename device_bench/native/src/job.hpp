// The job file: one flat JSON object of texts, numbers and lists of them.
#pragma once

#include <map>
#include <string>
#include <vector>

namespace edgefold {

class Job {
  public:
    explicit Job(const std::string &json); // throws std::runtime_error

    std::string text(const std::string &key) const; // throws std::runtime_error when missing
    double number(const std::string &key, double otherwise) const;
    std::vector<std::string> texts(const std::string &key) const;
    std::vector<int> numbers(const std::string &key) const;

  private:
    // Every value as a list of words; a single value is a list of one.
    std::map<std::string, std::vector<std::string>> values_;
};

std::string quoted(const std::string &text); // as a JSON string

} // namespace edgefold
