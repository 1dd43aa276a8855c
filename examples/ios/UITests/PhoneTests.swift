import XCTest

/// On a phone or in a simulator: the bundle's program in ExecuTorch, through the screens.
final class PhoneTests: XCTestCase {
  private var app: XCUIApplication!

  override func setUpWithError() throws {
    continueAfterFailure = false
    app = XCUIApplication()
    app.launch()
  }

  /// The text of an element, once it ends in this.
  private func text(_ name: String, endingIn end: String) -> String {
    let element = app.staticTexts[name]
    let said = NSPredicate(format: "label ENDSWITH %@", end)
    let waiting = XCTNSPredicateExpectation(predicate: said, object: element)
    XCTAssertEqual(XCTWaiter.wait(for: [waiting], timeout: 20), .completed, "\(name) says \(element.label)")
    return element.label
  }

  func testAStrokeOnThePadIsClassified() {
    let pad = app.descendants(matching: .any)["pad"]
    XCTAssertTrue(pad.waitForExistence(timeout: 5))
    let top = pad.coordinate(withNormalizedOffset: CGVector(dx: 0.5, dy: 0.2))
    let bottom = pad.coordinate(withNormalizedOffset: CGVector(dx: 0.5, dy: 0.8))
    top.press(forDuration: 0.05, thenDragTo: bottom)
    XCTAssertTrue(text("answer", endingIn: " ms").contains("%"))
  }

  func testTheProgramIsTimed() {
    app.tabBars.buttons["Benchmark"].tap()
    app.buttons["Run 100 rounds"].tap()
    XCTAssertTrue(text("statistics", endingIn: " ms").contains("median"))
  }
}
