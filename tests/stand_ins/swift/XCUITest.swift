// Signatures of Apple's XCTest for screens, which Swift's on Linux lacks; compiled with the tests; nothing runs.
import Foundation
import XCTest

class XCUICoordinate {
  func press(forDuration duration: TimeInterval, thenDragTo other: XCUICoordinate) {}
}

class XCUIElement: NSObject {
  enum ElementType { case any }

  var label: String { "" }
  var staticTexts: XCUIElementQuery { XCUIElementQuery() }
  var buttons: XCUIElementQuery { XCUIElementQuery() }
  var tabBars: XCUIElementQuery { XCUIElementQuery() }

  func descendants(matching type: ElementType) -> XCUIElementQuery { XCUIElementQuery() }
  func tap() {}
  func waitForExistence(timeout: TimeInterval) -> Bool { true }
  func coordinate(withNormalizedOffset offset: CGVector) -> XCUICoordinate { XCUICoordinate() }
}

class XCUIElementQuery: XCUIElement {
  subscript(name: String) -> XCUIElement { XCUIElement() }
}

class XCUIApplication: XCUIElement {
  func launch() {}
}

struct CGVector {
  init(dx: Double, dy: Double) {}
}

class XCTNSPredicateExpectation: XCTestExpectation, @unchecked Sendable {
  init(predicate: NSPredicate, object: Any?) { super.init() }
}

extension NSPredicate {
  // Foundation on Linux reads no formats
  convenience init(format: String, _ argument: String) { self.init(value: true) }
}
